# SPDX-License-Identifier: Apache-2.0
"""Learning rules, families and random models against oracles that share no code with them."""

from tests.float64 import diagnostics_are_not_errors, float64  # noqa: F401  found by their names
