# SPDX-License-Identifier: Apache-2.0
"""Single steps and windows of RTRL, from a state that starts without a derivative."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import IN, B, made


class Normed(brainstate.nn.Module):
    """A running mean square that starts at zero, where its root has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = bt.nn.Linear(IN, 3, key=1)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, 3), float))

    def update(self, x: Any) -> Any:
        y = self.linear(x)
        out = y / (1 + jnp.sqrt(self.v.value))
        self.v.value = 0.9 * self.v.value + y**2
        return out


def loss(learner: Any, x: Any) -> Any:
    return (learner(x) ** 2).sum()


@pytest.mark.parametrize("driver", ["calls", "blocks", "windows"])
def test_the_first_step_carries_no_old_trace(driver: str) -> None:
    xs = jax.random.normal(jax.random.key(0), (5, B, IN), float)
    options = {"vjp_method": "multi-step"} if driver == "windows" else {}
    learner = made(bt.RTRL, model=Normed(), **options)

    def plain(w: Any) -> Any:
        v, total = None, 0.0
        for x in xs:
            y = x @ w["weight"] + w["bias"]
            total = total + ((y if v is None else y / (1 + jnp.sqrt(v))) ** 2).sum()
            v = y**2 if v is None else 0.9 * v + y**2
        return total

    wanted = jax.grad(plain)(learner.model.linear.weight.value)
    if driver == "blocks":
        found = learner.etrace_grad(
            xs, step_fn=lambda x: loss(learner, x), reduction="sum", block_size=1
        )
    elif driver == "calls":
        total = brainstate.transform.grad(
            lambda: sum(loss(learner, x) for x in xs), learner.param_states
        )
        found = total()
    else:
        found = learner.etrace_grad(
            xs,
            step_fn=lambda x: (learner(bt.MultiStepData(x)) ** 2).sum((1, 2)),
            reduction="sum",
            chunk_size=2,
        )
    assert_tree_close(found["linear", "weight"], wanted, 1e-5)
