# SPDX-License-Identifier: Apache-2.0
"""The influence by rows of carried values is that of a tangent for each entry of a parameter."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.compiler.module_info import StateKind
from braintrace.testing import assert_tree_close
from tests.zoo import weight

STEPS, BATCH, UNITS = 4, 3, 2


class Layers(brainstate.nn.Module):
    """Two layers that meet, of operations, a product of JAX, and products by position."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.w, self.r, self.up = weight(UNITS, UNITS), weight(UNITS, UNITS), weight(UNITS, UNITS)
        self.leak, self.bias = weight(UNITS), weight(1, UNITS)
        self.unused = weight(2)

    def init_state(self, batch_size: int | None = None) -> None:
        """A layer [.., UNITS], and one above it with an axis more."""
        head = () if batch_size is None else (batch_size,)
        self.h = brainstate.HiddenState(jnp.full((*head, UNITS), 0.1))
        self.mean = brainstate.ShortTermState(jnp.full((*head, 1, UNITS), 0.2))

    def update(self, x: Any) -> Any:
        """One step."""
        own = bt.matmul(x, self.w.value) + self.h.value @ self.r.value
        leak = jax.nn.sigmoid(self.leak.value)
        if self.options.get("normed"):
            own = own / jnp.sqrt(1 + (own**2).sum())
        if self.options.get("meet"):
            own = own + 0.1 * own.sum(0, keepdims=True)
        if self.options.get("plain"):
            own = own + jnp.maximum(x, self.leak.value)
        self.h.value = jnp.tanh(leak * self.h.value + own)
        above = bt.matmul(self.h.value, jnp.sin(self.up.value))[..., None, :]
        self.mean.value = 0.8 * self.mean.value + above + self.bias.value
        return self.mean.value[..., 0, :]


def rule_of(batch: int | None = BATCH, **options: Any) -> Any:
    brainstate.random.seed(0)
    x = jnp.ones((UNITS,) if batch is None else (batch, UNITS))
    sizes = {} if batch is None else {"batch_size": batch}
    return bt.compile(Layers(**options), bt.RTRL, x, frozen=["unused"], **sizes).rule


def moved(rule: Any, batch: int | None, begins: Any = False) -> tuple[Any, Any]:
    """Traces after some steps with states of their own: by rows, and by tangents."""
    info, rng = rule.executor.graph.module_info, np.random.default_rng(1)
    head = () if batch is None else (batch,)
    xs = jnp.asarray(rng.normal(size=(STEPS, *head, UNITS)))
    params = {s.path: s.state.value for s in info.slots_of(StateKind.PARAM)}
    others = [s for s in info.slots if s.path not in params]
    states = {s.path: jnp.asarray(rng.normal(size=(STEPS, *s.state.value.shape))) for s in others}
    kept = jax.vmap(lambda x, states: rule.run([x], {**params, **states})[2])(xs, states)
    traces = tuple(jnp.asarray(rng.normal(size=trace.shape)) for trace in rule.init())
    found = rule.after_steps(traces, kept, params, begins)
    other = type(rule)(rule.executor, rule.trace_dtype, rule.order)
    other.__dict__["by_states"] = None
    return found, other.after_steps(traces, kept, params, begins)


@pytest.mark.parametrize(
    ("options", "batch", "examples"),
    [({}, BATCH, BATCH), ({"meet": True}, BATCH, 1), ({}, None, 1), ({}, 1, 1)],
)
def test_rows_are_tangents(options: Any, batch: int | None, examples: int) -> None:
    rule = rule_of(batch, **options)
    step = rule.by_states
    assert step.examples == examples and step.count * examples == sum(s.size for s in rule.carried)
    assert_tree_close(*moved(rule, batch), 1e-11)
    if batch == BATCH and examples == BATCH:
        assert_tree_close(*moved(rule, batch, jnp.asarray(True)), 1e-11)


def test_a_mask_is_kept_at_every_step() -> None:
    brainstate.random.seed(0)
    x = jnp.ones((BATCH, UNITS))
    rule = bt.compile(Layers(), bt.SnAp, x, batch_size=BATCH, n=1, frozen=["unused"]).rule
    assert rule.by_states is not None and rule.in_single_steps
    assert_tree_close(*moved(rule, BATCH), 1e-11)


def test_where_rows_are_not_possible_or_not_fewer() -> None:
    assert rule_of(normed=True).by_states is None  # a root
    assert rule_of(plain=True).by_states is None  # a parameter behind no product
    assert rule_of(16, meet=True).by_states is None  # more values than entries
