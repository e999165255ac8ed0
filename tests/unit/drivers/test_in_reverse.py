# SPDX-License-Identifier: Apache-2.0
"""Blocks in reverse mode: checks, progress, auxiliary data, states outside of the model."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import B, Growing, T, made, summed


def test_losses_aux_progress_and_weights_of_ones_own(data: Any, capsys: Any) -> None:
    learner = made(bt.RTRL)
    scale = brainstate.ParamState(jnp.asarray(2.0))

    def step(x: Any, y: Any) -> Any:
        out = learner(x)
        return scale.value * ((out - y) ** 2).sum(), out[0]

    options = {"step_fn": step, "has_aux": True, "return_value": True, "block_size": 3}
    weights = {"own": scale, "all": learner.model.readout.weight}
    grads, losses, aux = learner.etrace_grad(*data, weights=weights, progress=True, **options)
    assert losses.shape == (T,) and aux.shape == (T, 2) and "3/3" in capsys.readouterr().err
    np.testing.assert_allclose(grads["own"], losses.mean() / 2, rtol=1e-6)
    assert int(learner.running_index.value) == T
    other = made(bt.RTRL)
    found = other.etrace_grad(*data, step_fn=summed(other))
    assert_tree_close(grads["all"], {k: 2 * v for k, v in found["readout", "weight"].items()}, 1e-5)


def test_states_outside_of_the_model_carry_no_credit_in_any_block(data: Any) -> None:
    found = []
    for size in (1, 4):
        learner = made(bt.RTRL)
        mean = brainstate.ShortTermState(jnp.zeros((B, 2)))

        def step(x: Any, y: Any, learner: Any = learner, mean: Any = mean) -> Any:
            mean.value = 0.5 * mean.value + learner(x)
            return ((mean.value - y) ** 2).sum()

        found.append(learner.etrace_grad(*data, step_fn=step, block_size=size))
    assert_tree_close(*found, 1e-5)


def test_a_number_that_is_not_finite_is_named(data: Any) -> None:
    learner = made(bt.RTRL)
    xs = data[0].at[3, 0, 0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="at step 3, .*the gradient of "):
        learner.etrace_grad(xs, data[1], step_fn=summed(learner), check=True)


def test_without_a_carried_trace_nothing_is_left(data: Any) -> None:
    learner = made(bt.RTRL, model=Growing(0.9))
    xs, ys = data[0], jnp.zeros((T, B, 3))
    learner.etrace_grad(xs, ys, step_fn=summed(learner), carry_trace=False, block_size=2)
    assert not any(np.any(trace) for trace in learner.read_traces())
    learner.etrace_grad(xs, ys, step_fn=summed(learner))
    assert any(np.any(trace) for trace in learner.read_traces())
