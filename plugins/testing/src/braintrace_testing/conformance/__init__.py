# SPDX-License-Identifier: Apache-2.0
"""The conformance kit: named checks that every plugin passes."""

from __future__ import annotations

from . import case_checks as case_checks
from . import device_checks as device_checks
from . import jax_checks as jax_checks
from . import number_checks as number_checks
from . import rule_checks as rule_checks
from .case import ConformanceCase
from .case_checks import static_parameters
from .check import ConformanceError
from .kit import BoundCheck, bound_checks, check_plugin, list_checks, parametrize_with_checks

__all__ = [
    "BoundCheck",
    "ConformanceCase",
    "ConformanceError",
    "bound_checks",
    "check_plugin",
    "list_checks",
    "parametrize_with_checks",
    "static_parameters",
]
