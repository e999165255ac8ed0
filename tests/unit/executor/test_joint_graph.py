# SPDX-License-Identifier: Apache-2.0
"""The joint position graph: two rings above one another, and a state that is not hidden."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt

N = 5
RING = np.roll(np.eye(N), 1, axis=0)


class Rings(brainstate.nn.Module):
    """Each unit hears itself, and one neighbour of the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = (brainstate.ParamState(jnp.zeros(shape)) for shape in ((N,), (N, N)))

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        start = jnp.zeros((batch_size, N))
        self.a, self.b = brainstate.HiddenState(start), brainstate.HiddenState(start)
        self.other = brainstate.ShortTermState(start)

    def update(self, x: Any) -> Any:
        a, b = self.a.value, self.b.value
        self.a.value = jnp.tanh(b + bt.matmul(a, RING * self.r.value) + x * self.w.value)
        self.b.value = 0.5 * b + jnp.sin(a)
        self.other.value = 0.5 * self.other.value + jnp.roll(self.a.value, 2, -1)
        return self.b.value


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_is_reached_within_some_steps(n: int) -> None:
    learner = bt.compile(Rings(), "snap", jnp.zeros((2, N)), batch_size=2, n=n)
    rule = learner.rule
    assert [s.path for s in rule.carried] == [("a",), ("b",), ("other",)]
    rows = np.cumsum([0, *(p.size for p in rule.parameters)])
    (w,) = (k for k, p in enumerate(rule.parameters) if p.path == ("w",))
    masks = [mask[rows[w] : rows[w + 1]] for mask in rule.masks]
    step = (RING.T + np.eye(N)) > 0  # unit p hears unit q
    group = np.linalg.matrix_power(step.astype(int), n - 1) > 0
    other = np.roll(np.eye(N), 2, axis=0)
    for found in masks[:2]:  # states of a group are kept together
        np.testing.assert_array_equal(found[:, 0], group.T)
    # the other state reads the new values of the step, and itself
    reached = [other @ (np.linalg.matrix_power(step.astype(int), k) > 0) for k in range(n)]
    np.testing.assert_array_equal(masks[2][:, 1], (sum(reached) > 0).T)


def test_what_cannot_be_told_is_kept_with_a_warning() -> None:
    class Sorted(Rings):
        def update(self, x: Any) -> Any:
            return super().update(x) + 0 * self.turned(jnp.argsort(x[0]))

        def turned(self, order: Any) -> Any:
            self.a.value = self.a.value[:, order]
            return 0.0

    with pytest.warns(UserWarning, match="the position graph cannot be told, because the step"):
        learner = bt.compile(Sorted(), "snap", jnp.zeros((2, N)), batch_size=2, n=1)
    assert learner.rule.masks == (None, None, None) and not learner.rule.in_single_steps
