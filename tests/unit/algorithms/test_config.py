# SPDX-License-Identifier: Apache-2.0
"""Learning rules by their coordinates."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import braintrace as bt

CONFIGS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "vocabulary": ({"recurrence_scope": "x"}, ValueError, "one of .*'diagonal'.*got 'x'"),
    "missing": ({"trace_factorization": "io_factorized"}, ValueError, "needs decay"),
    "alone": ({"kappa": 0.5}, ValueError, "kappa=0.5 needs trace_filter='kappa'"),
    "range": ({"trace_filter": "kappa", "kappa": 1.0}, ValueError, r"number in \[0, 1\)"),
    "order": ({"recurrence_scope": "sparse_n", "sparse_n": 0}, ValueError, "integer from 1"),
    "pair": (
        {"trace_factorization": "random_projection"},
        ValueError,
        r"goes with recurrence_scope in \('full',\), not with 'diagonal'",
    ),
    "filter": (
        {"recurrence_scope": "sparse_n", "sparse_n": 2, "trace_filter": "kappa", "kappa": 0.5},
        ValueError,
        "goes with recurrence_scope in",
    ),
    "dni": ({"learning_signal": "bootstrapped"}, ValueError, "goes with learning_signal in"),
    "seed": ({"seed": 0.5}, TypeError, "must be an integer or a JAX key, got 0.5"),
    "keys": ({"seed": jax.random.split(jax.random.key(0))}, TypeError, "integer or a JAX key"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(case: str) -> None:
    options, error, says = CONFIGS[case]
    with pytest.raises(error, match=says):
        bt.ETraceConfig(**options)


def test_spellings_of_one_rule_are_equal() -> None:
    assert bt.ETraceConfig(trace_filter="kappa", kappa=0.0) == bt.ETraceConfig()
    coupled = bt.ETraceConfig(recurrence_scope="sparse_n", sparse_n=1)
    assert coupled == bt.ETraceConfig(recurrence_scope="coupled")
