# SPDX-License-Identifier: Apache-2.0
"""Sequences that are learned in windows."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests.unit.drivers.net import (
    IN,
    B,
    T,
    made,
    of_windows,
    summed,
)


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_windows_of_rtrl_are_bptt(chunk: int, data: Any) -> None:
    xs, ys = data
    model = bt.nn.ValinaRNNCell(IN, IN, key=1)
    learner = made("rtrl", model=model, vjp_method="multi-step")
    _, reference = bptt(model, (xs, ys), lambda out, y: ((out - y) ** 2).sum())
    options = {"step_fn": of_windows(learner), "chunk_size": chunk, "reduction": "sum"}
    assert_tree_close(learner.etrace_grad(xs, ys, **options), reference)


def test_a_window_moves_states_and_traces_like_its_steps(data: Any) -> None:
    xs, _ = data
    a, b = made(vjp_method="multi-step"), made()
    outputs = a(bt.MultiStepData(xs))
    assert_tree_close(outputs, b(bt.MultiStepData(xs)))
    assert_tree_close([t.value for t in a.traces], [t.value for t in b.traces])
    assert a.running_index.value == b.running_index.value == T
    assert a(xs[0]).shape == (B, IN)


def test_an_argument_that_is_not_wrapped_is_the_same_at_every_step(data: Any) -> None:
    xs, _ = data
    a, b, c = (made(vjp_method="multi-step") for _ in range(3))
    both = bt.MultiStepData(jnp.stack([xs[0], xs[0]]))
    a.etrace_evolve(xs[:1])
    assert_tree_close(b(both)[0], c(bt.SingleStepData(xs[0])))


def test_windows_add_up_in_more_than_half_precision() -> None:
    """One is nothing to 256 in bfloat16."""

    class Product(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = brainstate.ParamState(jnp.ones((1, 1), jnp.bfloat16))

        def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, 1), jnp.bfloat16))

        def update(self, x: Any) -> Any:
            self.h.value = bt.matmul(x, self.weight.value)
            return self.h.value

    xs = jnp.ones((600, 1, 1), jnp.bfloat16)
    learner = bt.compile(Product(), "rtrl", xs[0], batch_size=1, vjp_method="multi-step")
    step_fn = lambda x: learner(bt.MultiStepData(x)).sum((1, 2))  # noqa: E731
    grads = learner.etrace_grad(xs, step_fn=step_fn, chunk_size=1, reduction="sum")
    assert grads["weight",].dtype == jnp.bfloat16
    assert float(grads["weight",][0, 0]) == 600


def test_a_weight_that_windows_do_not_use_has_the_gradient_zero(data: Any) -> None:
    learner, unused = made(vjp_method="multi-step"), brainstate.ParamState(jnp.ones(2))
    options = {"step_fn": of_windows(learner), "chunk_size": 3, "weights": {"unused": unused}}
    np.testing.assert_array_equal(learner.etrace_grad(*data, **options)["unused"], np.zeros(2))


def test_windows_that_are_refused(data: Any) -> None:
    learner = made(vjp_method="multi-step")
    with pytest.raises(ValueError, match="pass their length as chunk_size"):
        learner.etrace_grad(*data, step_fn=summed(learner))
    with pytest.raises(TypeError, match=r"losses of shape \(2,\)"):
        learner.etrace_grad(
            *data, step_fn=lambda x, y: learner(bt.MultiStepData(x)).sum(), chunk_size=2
        )
    with pytest.raises(TypeError, match=r"aux must have an entry for each of the 2 steps"):
        learner.etrace_grad(
            *data, step_fn=lambda x, y: (of_windows(learner)(x, y), 1.0), chunk_size=2, has_aux=True
        )
    with pytest.raises(ValueError, match="exactly once per window; it called it 0 times"):
        learner.etrace_grad(*data, step_fn=lambda x, y: x.sum((1, 2)), chunk_size=2)
    with pytest.raises(ValueError, match="one length of at least one"):
        learner(bt.MultiStepData(jnp.zeros((0, B, IN))))
