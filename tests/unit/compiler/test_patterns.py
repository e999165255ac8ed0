# SPDX-License-Identifier: Apache-2.0
"""Which steps of a delay line depend on which."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.patterns import has_lines

STEPS = 4


class Line(brainstate.nn.Module):
    def __init__(self, ring: bool) -> None:
        super().__init__()
        self.ring, self.drive = ring, bt.nn.Linear(3, 5, key=1)

    def init_state(self, batch_size: int = 2, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 5)))
        self.line = brainstate.ShortTermState(jnp.zeros((STEPS, batch_size, 5)))
        self.t = brainstate.ShortTermState(jnp.zeros((), int))

    def update(self, x: Any) -> Any:
        old, self.h.value = self.line.value, 0.9 * jnp.tanh(self.h.value) + self.drive(x)
        z, k = jnp.tanh(self.h.value), self.t.value % STEPS
        joined = jnp.concatenate([z[None], old[:-1]])
        self.line.value, self.t.value = old.at[k].set(z) if self.ring else joined, self.t.value + 1
        return old[-1]


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
@pytest.mark.parametrize(
    ("ring", "passing", "driving"),
    [
        (False, ["x....", "x....", ".x...", "..x..", "...x."], "xx..."),
        (True, ["x....", "xx...", "x.x..", "x..x.", "x...x"], "xxxxx"),
    ],
)
def test_steps_of_a_line(ring: bool, scope: str, passing: list[str], driving: str) -> None:
    graph = bt.compile_etrace_graph(
        brainstate.nn.init_all_states(Line(ring), batch_size=2),
        jnp.ones((2, 3)),
        recurrence_scope=scope,
    )
    (cone,), (group,) = graph.cones, graph.hidden_groups
    assert has_lines(group)
    assert ["".join(".x"[entry] for entry in row) for row in cone.passing] == passing
    assert ["".join(".x"[s] for s in own) for own in cone.driving.values()] == [driving]
