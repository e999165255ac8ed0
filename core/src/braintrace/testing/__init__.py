# SPDX-License-Identifier: Apache-2.0
"""Independent references for learning rules, comparison with them, and the conformance kit.

- :func:`d_rtrl_oracle`, :func:`pp_prop_oracle`: learning rules from dense local Jacobians, without
  the compiler;
- :func:`bptt`, :func:`truncated_bptt`: backpropagation through time;
- :func:`assert_tree_close`: comparison that cannot pass vacuously;
- :func:`parametrize_with_checks`, :func:`check_plugin`: named checks that every plugin passes, on
  the author's :class:`ConformanceCase` records; :func:`list_checks` says what they promise.
"""

from __future__ import annotations

from ._bptt import bptt, truncated_bptt
from ._compare import assert_tree_close
from ._conformance import (
    BoundCheck,
    ConformanceCase,
    ConformanceError,
    bound_checks,
    check_plugin,
    list_checks,
    parametrize_with_checks,
)
from ._oracle import OracleResult, StepRecord, d_rtrl_oracle, pp_prop_oracle

__all__ = [
    "BoundCheck",
    "ConformanceCase",
    "ConformanceError",
    "OracleResult",
    "StepRecord",
    "assert_tree_close",
    "bound_checks",
    "bptt",
    "check_plugin",
    "d_rtrl_oracle",
    "list_checks",
    "parametrize_with_checks",
    "pp_prop_oracle",
    "truncated_bptt",
]
