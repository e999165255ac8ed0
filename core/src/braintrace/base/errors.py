# SPDX-License-Identifier: Apache-2.0
"""Errors raised by the compiler and the learners."""

from __future__ import annotations


class CompilationError(Exception):
    """A model cannot be compiled: the text says what was found, where, and what to do."""


class NotSupportedError(CompilationError):
    """A model uses a construction whose gradient would not be right, so it is refused."""
