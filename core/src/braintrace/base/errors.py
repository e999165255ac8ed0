# SPDX-License-Identifier: Apache-2.0
"""Errors raised by the compiler and the learners."""

from __future__ import annotations

from collections.abc import Mapping


class CompilationError(Exception):
    """A model cannot be compiled: the text says what was found, where, and what to do."""


class NotSupportedError(CompilationError):
    """A model uses a construction whose gradient would not be right, so it is refused."""


def refuse_unused(cls: type, instead: Mapping[str, str]) -> None:
    """Refuse a class that defines, or inherits, a method that nothing calls any more.

    Raises
    ------
    TypeError
        With the first such name and what to do instead.
    """
    for name, remedy in instead.items():
        if any(name in vars(base) for base in cls.__mro__):
            raise TypeError(f"{cls.__name__} defines {name}, which nothing calls: {remedy}")
