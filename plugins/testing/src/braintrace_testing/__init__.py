# SPDX-License-Identifier: Apache-2.0
"""Independent references for learning rules, comparison with them, and the conformance kit.

- :func:`d_rtrl_oracle`, :func:`pp_prop_oracle`, :func:`rtrl_oracle`, :func:`snap_oracle`,
  :func:`e_prop_oracle`, :func:`three_factor_oracle`, :func:`uoro_oracle`: learning rules from
  dense local Jacobians, without the compiler; all but RTRL and SnAp also with credit that passes
  uniform states;
  :func:`influence_oracle`: RTRL and SnAp of everything that a step carries;
  :func:`window_oracle`: the same between windows of steps;
- :func:`bptt`, :func:`truncated_bptt`: backpropagation through time; :func:`dni_reference`: with
  predicted gradients at the ends of windows;
- :func:`assert_tree_close`: comparison that cannot pass vacuously;
- :func:`parametrize_with_checks`, :func:`check_plugin`: named checks that every plugin passes, on
  the author's :class:`ConformanceCase` records; :func:`list_checks` says what they promise, and
  :func:`static_parameters` for which values.
"""

from __future__ import annotations

from .bptt import bptt, truncated_bptt
from .compare import assert_tree_close
from .conformance import (
    BoundCheck,
    ConformanceCase,
    ConformanceError,
    bound_checks,
    check_plugin,
    list_checks,
    parametrize_with_checks,
    static_parameters,
)
from .influence import InfluenceResult, influence_oracle
from .learn import OracleResult
from .oracle import d_rtrl_oracle, pp_prop_oracle, rtrl_oracle, snap_oracle
from .records import StepRecord
from .signals import e_prop_oracle, three_factor_oracle
from .uoro import uoro_oracle
from .windows import dni_reference, window_oracle

__all__ = [
    "BoundCheck",
    "ConformanceCase",
    "ConformanceError",
    "InfluenceResult",
    "OracleResult",
    "StepRecord",
    "assert_tree_close",
    "bound_checks",
    "bptt",
    "check_plugin",
    "d_rtrl_oracle",
    "dni_reference",
    "e_prop_oracle",
    "influence_oracle",
    "list_checks",
    "parametrize_with_checks",
    "pp_prop_oracle",
    "rtrl_oracle",
    "snap_oracle",
    "static_parameters",
    "three_factor_oracle",
    "truncated_bptt",
    "uoro_oracle",
    "window_oracle",
]
