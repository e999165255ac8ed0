# SPDX-License-Identifier: Apache-2.0
"""Independent references for learning rules, and comparison with them.

- :func:`d_rtrl_oracle`: D-RTRL from dense local Jacobians, without the compiler;
- :func:`bptt`, :func:`truncated_bptt`: backpropagation through time;
- :func:`assert_tree_close`: comparison that cannot pass vacuously.
"""

from __future__ import annotations

from ._bptt import bptt, truncated_bptt
from ._compare import assert_tree_close
from ._oracle import OracleResult, StepRecord, d_rtrl_oracle

__all__ = [
    "OracleResult",
    "StepRecord",
    "assert_tree_close",
    "bptt",
    "d_rtrl_oracle",
    "truncated_bptt",
]
