# SPDX-License-Identifier: Apache-2.0
"""The position graph of SnAp: masks count, momentary zeros do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.executor.position_graph import position_graph

N = 6
RING = np.roll(np.eye(N, dtype=bool), 1, axis=0)


@jax.custom_vjp
def spike(v: Any) -> Any:
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g * jnp.maximum(1 - jnp.abs(v) / 1e-3, 0),))

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "dead_relu": lambda v: jax.nn.relu(v - 1e6),
    "branch_not_taken": lambda v: jnp.where(v > 1e6, v, 0.0),
    "narrow_surrogate": spike,
    "opposite_branches": lambda v: jnp.where(v > 0, v, -v),
    "times_the_state": lambda v: v * jax.lax.stop_gradient(v),
}


class Masked(brainstate.nn.Module):
    """Units with recurrent weights of zero under a mask."""

    def __init__(self, activation: Callable[[Any], Any], mask: Any) -> None:
        super().__init__()
        self.activation, self.mask = activation, mask
        self.weight = brainstate.ParamState(jnp.zeros((N, N)))

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, N)))

    def update(self, x: Any) -> Any:
        drive = x + bt.matmul(self.h.value, self.mask * self.weight.value)
        self.h.value = 0.5 * self.h.value + self.activation(drive)
        return self.h.value


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masks_count_and_momentary_zeros_do_not(activation: str) -> None:
    model = Masked(ACTIVATIONS[activation], RING.astype(float))
    learner = bt.compile(model, "snap", jnp.zeros((2, N)), batch_size=2, n=3, downstream="step")
    graph = graph_in(learner)
    np.testing.assert_array_equal(graph, RING.T | np.eye(N, dtype=bool))
    (mask,) = learner.rule.masks
    np.testing.assert_array_equal(mask.sum(0), np.full((2, N), 3))


def test_an_index_that_moves_leaves_every_edge() -> None:
    class Gathered(Masked):
        def update(self, x: Any) -> Any:
            order = jnp.argsort(x[0])
            mixed = bt.matmul(self.h.value[:, order], self.mask * self.weight.value)
            self.h.value = jnp.tanh(x + mixed)
            return self.h.value

    with pytest.warns(UserWarning, match="the position graph of h cannot be told"):
        assert graph_of(Gathered(jnp.tanh, RING.astype(float))).all()


def graph_of(model: brainstate.nn.Module) -> Any:
    learner = bt.compile(model, "snap", jnp.zeros((2, N)), batch_size=2, n=2, downstream="step")
    return graph_in(learner)


def graph_in(learner: Any) -> Any:
    executor = learner.rule.executor
    return position_graph(executor.graph, executor.groups[0])


def test_a_weight_that_is_cut_off_at_zero_has_its_edges() -> None:
    class Rectified(Masked):
        def update(self, x: Any) -> Any:
            positive = self.mask * jax.nn.relu(self.weight.value)
            self.h.value = 0.5 * self.h.value + x + bt.matmul(self.h.value, positive)
            return self.h.value

    graph = graph_of(Rectified(jnp.tanh, RING.astype(float)))
    np.testing.assert_array_equal(graph, RING.T | np.eye(N, dtype=bool))


def test_the_largest_of_a_window_can_be_any() -> None:
    class Pooled(Masked):
        def update(self, x: Any) -> Any:
            old = self.h.value
            largest = jax.lax.reduce_window(old, -jnp.inf, jax.lax.max, (1, 3), (1, 1), "SAME")
            self.h.value = largest + bt.matmul(x, self.weight.value)
            return self.h.value

    neighbours = sum(np.eye(N, k=k) for k in (-1, 0, 1)) > 0
    with pytest.warns(UserWarning, match="cannot be told"):
        assert graph_of(Pooled(jnp.tanh, 1.0))[neighbours].all()
