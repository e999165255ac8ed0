# SPDX-License-Identifier: Apache-2.0
"""Entries of a rule with a mask: those of windows are booked at their borders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import IN, B, made, summed


@pytest.mark.parametrize("size", [None, 1, 2])
def test_what_is_kept_is_the_gradient_of_the_rule(size: int | None) -> None:
    learner = made("snap", n=1, vjp_method="single-step" if size is None else "multi-step")
    xs = jnp.sin(jnp.arange(5.0 * B * IN)).reshape(5, B, IN)

    def of_window(x: jax.Array, y: jax.Array) -> jax.Array:
        return ((learner(bt.MultiStepData(x)) - y.sum(-1, keepdims=True)) ** 2).sum((1, 2))

    step = of_window if size == 2 else summed(learner)
    ledger = learner.credit_ledger(xs, xs, step_fn=step, chunk_size=size)
    grads = learner.etrace_grad(xs, xs, step_fn=step, chunk_size=size, carry_trace=False)
    kept = {e.parameter: e.gradient for e in ledger.entries if e.kind == "kept by the rule"}
    assert_tree_close(kept, {path: grads[path] for path in kept}, 1e-5)
    others = {e.kind for e in ledger.entries} - {"kept by the rule"}
    assert others == {"recurrent product" if size is None else "window border"}
