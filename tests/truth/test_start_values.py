# SPDX-License-Identifier: Apache-2.0
"""States that start where a step has no derivative: a running variance at 0, whose root is read.

``D`` or ``e`` of the first step is infinite, and so it is after an episode's reset in the middle.
Backpropagation is finite: nothing is behind a start value.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

B, T, KAPPA = 2, 6, 0.9
EXACT: dict[str, dict[str, Any]] = {
    "d_rtrl": {},
    "snap": {"n": 2},
    "rtrl": {},
    "windows": {"vjp_method": "multi-step"},
    "linear": {"downstream": "linear"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "pp_prop": {"decay_or_rank": 0.9},
    "eprop": {"kappa_filter_decay": KAPPA, "downstream": "step"},
    "uoro": {},
    "dni": {},
}


class Scaled(zoo.Model):
    """A leak that is scaled by the root of a running variance, which the readout reads late."""

    names = ("h", "v")

    def __init__(self) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.w, self.out = weight(IN, HIDDEN), weight(HIDDEN, 2)

    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros((batch_size, HIDDEN))

    def update(self, x: Any) -> Any:
        done, x = x[:, :1] > 0, x[:, 1:]
        h, v = (jnp.where(done, 0.0, state.value) for state in (self.h, self.v))
        self.h.value = 0.8 * h * jnp.sqrt(v) + bt.matmul(x, self.w.value)
        self.v.value = 0.9 * v + 0.1 * self.h.value**2
        length = jnp.linalg.norm(v, axis=-1, keepdims=True)
        return self.h.value @ self.out.value + length


def sequence() -> Any:
    """With a reset of the first example at step 3."""
    xs = np.random.default_rng(0).normal(size=(T, B, 1 + IN))
    xs[..., 0] = 0
    xs[3, 0, 0] = 1
    return jnp.asarray(xs)


@cache
def reference() -> Any:
    model = Scaled()
    brainstate.nn.init_all_states(model, batch_size=B)
    xs = sequence()

    def total() -> Any:
        return brainstate.transform.for_loop(lambda x: (model(x) ** 2).sum(), xs).sum()

    return brainstate.transform.grad(total, model.states(brainstate.ParamState))()


def learned(name: str, options: dict[str, Any], model: Any = Scaled, **how: Any) -> Any:
    rule = {"windows": "d_rtrl", "linear": "d_rtrl"}.get(name, name)
    xs = sequence()
    learner = bt.compile(model(), rule, xs[0], batch_size=B, **options)
    if learner.vjp_method == "multi-step":
        how = {**how, "chunk_size": how.pop("block_size")}

    def loss(x: Any) -> Any:
        if learner.vjp_method == "multi-step":
            return (learner(bt.MultiStepData(x)) ** 2).sum((1, 2))
        return (learner(x) ** 2).sum()

    return learner, learner.etrace_grad(xs, step_fn=loss, reduction="sum", **how)


@pytest.mark.parametrize("name", EXACT)
def test_exact_rules_equal_backpropagation(name: str) -> None:
    _, found = learned(name, EXACT[name], block_size=2)
    assert_tree_close(found, reference(), 1e-10)


@pytest.mark.parametrize("block_size", [2, T])
def test_without_a_carried_trace(block_size: int) -> None:
    _, found = learned("d_rtrl", {}, block_size=block_size, carry_trace=False)
    assert_tree_close(found, reference(), 1e-10)


class Filtered(Scaled):
    """The filters of e-prop by hand: behind ``h``, and behind the square in the norm of old ``v``.

    Where the norm is zero, it has no derivative.
    """

    names = ("h", "v", "p", "q")

    def update(self, x: Any) -> Any:
        square = jnp.where(x[:, :1] > 0, 0.0, self.v.value) ** 2
        super().update(x)
        self.p.value, self.q.value = (
            KAPPA * state.value + z for state, z in ((self.p, self.h.value), (self.q, square))
        )
        h, square = credited(self.h.value, self.p.value), credited(square, self.q.value)
        total = square.sum(-1, keepdims=True)
        positive = total > 0
        length = jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1.0)), 0.0)
        return h @ self.out.value + length


def credited(value: Any, of: Any) -> Any:
    """A value with the derivative of another one."""
    held = jax.lax.stop_gradient
    return held(value) + of - held(of)


def test_eprop_with_filters_behind_what_is_emitted() -> None:
    model, xs = Filtered(), sequence()
    brainstate.nn.init_all_states(model, batch_size=B)
    groups = [[("h",), ("v",), ("p",), ("q",)]]
    expected = d_rtrl_oracle(model, (xs,), lambda y: (y**2).sum(), groups=groups).grads
    for block_size in (1, 4):
        _, found = learned("eprop", {"kappa_filter_decay": KAPPA}, block_size=block_size)
        assert_tree_close(found, expected, 1e-10)
    learner, _ = learned("eprop", {"kappa_filter_decay": KAPPA}, block_size=1)
    learner.reset_state(B, model_states=True)
    calls = [
        brainstate.transform.grad(
            lambda x: (learner(x) ** 2).sum(), learner.param_states, return_value=False
        )(x)
        for x in xs
    ]
    assert_tree_close(jax.tree.map(lambda *v: sum(v), *calls), expected, 1e-10)


class Rooted(Scaled):
    """A leaky sum of squares of old values, of which the root is read: its leak moves."""

    names = ("h", "v", "y")

    def update(self, x: Any) -> Any:
        square = jnp.where(x[:, :1] > 0, 0.0, self.v.value) ** 2
        above = super().update(x)
        self.y.value = 0.7 * self.y.value + square @ jnp.ones((HIDDEN, HIDDEN))
        return above + jnp.sqrt(self.y.value).sum(-1, keepdims=True)


@pytest.mark.parametrize("block_size", [2, T])
def test_filters_in_front_of_a_leak_whose_root_is_read(block_size: int) -> None:
    learner, found = learned("d_rtrl", {}, Rooted, block_size=block_size)
    assert list(learner.graph.uniform) == [("y",)]
    model = brainstate.nn.init_all_states(Rooted(), batch_size=B)
    exact = bptt(model, (sequence(),), lambda y: (y**2).sum())[1]
    assert_tree_close(found, exact, 1e-10)
    _, found = learned("pp_prop", OTHERS["pp_prop"], Rooted, block_size=block_size)
    assert all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves(found))


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_rule_is_finite_and_goes_on(name: str) -> None:
    learner, first = learned(name, OTHERS[name], block_size=4)
    for tree in (first, learner.read_traces()):
        assert all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves(tree))


def test_single_calls_and_a_call_after_a_reset() -> None:
    learner, _ = learned("d_rtrl", {}, block_size=3)
    grad = brainstate.transform.grad(
        lambda x: (learner(x) ** 2).sum(), learner.param_states, return_value=False
    )
    for _ in range(2):
        learner.reset_state()
        for state in learner.hidden_states.values():
            state.value = jnp.zeros_like(state.value)
        found = [grad(x) for x in sequence()]
        assert_tree_close(jax.tree.map(lambda *v: sum(v), *found), reference(), 1e-10)


def test_windows_without_a_carried_trace_count_their_steps() -> None:
    learner, found = learned("windows", EXACT["windows"], block_size=T, carry_trace=False)
    assert_tree_close(found, reference(), 1e-10)
    assert int(learner.running_index.value) == T
