# SPDX-License-Identifier: Apache-2.0
"""The conformance kit: named checks that every plugin passes."""

from __future__ import annotations

from . import _jax_checks as _jax_checks
from . import _number_checks as _number_checks
from . import _rule_checks as _rule_checks
from ._case import ConformanceCase
from ._check import ConformanceError
from ._kit import BoundCheck, bound_checks, check_plugin, list_checks, parametrize_with_checks

__all__ = [
    "BoundCheck",
    "ConformanceCase",
    "ConformanceError",
    "bound_checks",
    "check_plugin",
    "list_checks",
    "parametrize_with_checks",
]
