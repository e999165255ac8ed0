# SPDX-License-Identifier: Apache-2.0
"""Fixtures, found by their names."""

from tests.unit.compiler.reference import model  # noqa: F401
