# SPDX-License-Identifier: Apache-2.0
"""One step, or a window, whose reverse mode is the learning rule; gradients derived by hand."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.drivers.running import read_states
from braintrace.drivers.steps import (
    add_gradients,
    add_scaled,
    end_of_sum,
    not_differentiable,
    online_step,
    window_step,
)
from tests import zoo

X = np.random.default_rng(0).normal(size=(2, 2, zoo.IN))
W, H = ("w",), ("h",)


class Ready:
    """A compiled learner of h <- 0.8 h + x W, y = tanh(h), and what its step takes."""

    def __init__(self, **options: Any) -> None:
        options = {"downstream": "step", **options}
        self.learner: Any = bt.compile(zoo.Leaky(), "d_rtrl", X[0], batch_size=2, **options)
        self.params, self.states = read_states(self.learner)
        self.traces = self.learner.read_traces()
        self.w, self.h0 = self.params[W], self.states[H]
        self.h1 = 0.8 * self.h0 + X[0] @ self.w
        self.h2 = 0.8 * self.h1 + X[1] @ self.w

    def slope(self, h: Any) -> Any:
        return 1.0 - jnp.tanh(h) ** 2


@pytest.fixture
def ready() -> Ready:
    return Ready()


def test_a_step_moves_states_and_traces_and_gives_the_gradient_of_the_rule(ready: Ready) -> None:
    step = online_step(ready.learner.rule)
    first = ready.params, [X[0]], ready.states, ready.traces, None
    out, new, traces = step(*first)
    np.testing.assert_allclose(out, jnp.tanh(ready.h1), rtol=1e-12)
    np.testing.assert_allclose(new[H], ready.h1, rtol=1e-12)
    second = ready.params, [X[1]], new, traces, None

    def loss(params: Any, args: Any, states: Any, traces: Any, given: Any) -> Any:
        return step(params, args, states, traces, given)[0].sum()

    params, args, states, of_traces = jax.grad(loss, argnums=(0, 1, 2, 3))(*second)
    slope = ready.slope(ready.h2)
    traced = jnp.einsum("bi,bh->ih", X[1] + 0.8 * X[0], slope)  # D-RTRL, which is BPTT here
    np.testing.assert_allclose(params[W], traced, rtol=1e-10)
    np.testing.assert_allclose(args[0], slope @ ready.w.T, rtol=1e-10)
    assert not states[H].any()  # credit for the past is in the traces
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_traces))


def test_a_gradient_of_the_rule_has_no_derivative(ready: Ready) -> None:
    step = online_step(ready.learner.rule)

    def loss(params: Any) -> Any:
        return step(params, [X[0]], ready.states, ready.traces, None)[0].sum()

    with pytest.raises(bt.NotSupportedError, match="is an online gradient, and its derivative"):
        jax.grad(lambda params: jax.grad(loss)(params)[W].sum())(ready.params)


def test_a_window_has_reverse_mode_inside(ready: Ready) -> None:
    step = window_step(ready.learner.rule)

    def loss(params: Any) -> Any:
        out, *rest = step(params, [X], ready.states, ready.traces, {})
        return out[1].sum(), (out, rest)

    grads, (out, (new, _)) = jax.grad(loss, has_aux=True)(ready.params)
    np.testing.assert_allclose(out, jnp.tanh(jnp.stack([ready.h1, ready.h2])), rtol=1e-12)
    np.testing.assert_allclose(new[H], ready.h2, rtol=1e-12)
    expected = jnp.einsum("bi,bh->ih", X[1] + 0.8 * X[0], ready.slope(ready.h2))
    np.testing.assert_allclose(grads[W], expected, rtol=1e-10)


def test_credit_crosses_the_borders_of_windows(ready: Ready) -> None:
    step = window_step(ready.learner.rule)
    _, new, traces = step(ready.params, [X[:1]], ready.states, ready.traces, {})
    grads = jax.grad(lambda p: step(p, [X[1:]], new, traces, {})[0].sum())(ready.params)
    expected = jnp.einsum("bi,bh->ih", X[1] + 0.8 * X[0], ready.slope(ready.h2))
    np.testing.assert_allclose(grads[W], expected, rtol=1e-10)


def test_predictions_stand_for_later_losses_and_learn(ready: Ready) -> None:
    def predict(given: Any, hidden: Any) -> Any:
        return {path: given * jnp.ones_like(value) for path, value in hidden.items()}

    step = window_step(ready.learner.rule, predict)

    def loss(params: Any, given: Any) -> Any:
        return step(params, [X[:1]], ready.states, ready.traces, given)[0].sum()

    grads, of_given = jax.grad(loss, argnums=(0, 1))(ready.params, 0.25)
    signal = ready.slope(ready.h1) + 0.25
    np.testing.assert_allclose(grads[W], jnp.einsum("bi,bh->ih", X[0], signal), rtol=1e-10)
    np.testing.assert_allclose(of_given, (0.25 - 0.8 * signal).sum(), rtol=1e-10)


def test_sums_of_gradients() -> None:
    none = np.zeros(2, jax.dtypes.float0)
    assert add_gradients(none, jnp.ones(2)) is none
    assert add_gradients(jnp.ones(2), 2 * jnp.ones(2)).tolist() == [3.0, 3.0]
    total = add_scaled(jnp.array([1.0], "float32"), jnp.array([2.0], "bfloat16"), 0.5)
    found = end_of_sum(total, jnp.ones(1, "bfloat16"))
    assert (found.dtype, found.tolist()) == ("bfloat16", [2.0])


def test_results_that_refuse_to_be_differentiated() -> None:
    x = jnp.arange(2.0)
    assert not_differentiable(2 * x, x).tolist() == [0.0, 2.0]
    with pytest.raises(bt.NotSupportedError, match="the result of etrace_grad .* cannot be diff"):
        jax.grad(lambda x: not_differentiable(2 * x, x).sum())(x)


def test_a_step_under_brainstate_leaves_states_alone(ready: Ready) -> None:
    before = {s: s.value for s in brainstate.graph.states(ready.learner.model).values()}
    online_step(ready.learner.rule)(ready.params, [X[0]], ready.states, ready.traces, None)
    assert all(state.value is value for state, value in before.items())
