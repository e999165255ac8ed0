# SPDX-License-Identifier: Apache-2.0
"""Tests of one file of core each: folders and names are those of core."""

from tests.float64 import diagnostics_are_not_errors, float64  # noqa: F401  found by their names
