# SPDX-License-Identifier: Apache-2.0
"""Meshes with explicit axes; an axis of one device already has a type."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

import braintrace as bt
from braintrace.drivers import explicit
from braintrace.testing import assert_tree_close

MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
X, W = jnp.ones((4, 3)), jnp.ones((3, 2))


def placed(value: Any, *spec: Any) -> Any:
    return jax.device_put(value, jax.NamedSharding(MESH, jax.P(*spec)))


def spec_of(value: Any) -> Any:
    return jax.typeof(value).sharding.spec


def gradient(x: Any, w: Any) -> Any:
    """A sum over examples, which JAX refuses on an explicit axis that these are along."""
    return x.T @ jnp.tanh(x @ w), jnp.tanh(x @ w)


def test_inside_no_axis_is_explicit_and_outside_results_lie_where_they_should() -> None:
    args = placed(X, "data"), placed(W)
    with pytest.raises(Exception, match="ambiguous|out_sharding"):
        jax.jit(gradient)(*args)
    run = jax.jit(lambda *args: explicit.automatic(gradient, args, lambda found: (args[1], None)))
    dw, y = run(*args)
    assert spec_of(dw) == jax.P(None, None) and spec_of(y) == jax.P("data", None)
    assert explicit.automatic(gradient, (X, W), None)[0].shape == (3, 2)  # type: ignore[arg-type]


def test_states_lie_where_they_lay() -> None:
    state, only_read = (
        brainstate.ShortTermState(placed(v, *s)) for v, s in ((X, ["data"]), (W, []))
    )

    def step(x: Any) -> Any:
        state.value = state.value + x
        return gradient(state.value, only_read.value)[0]

    @brainstate.transform.jit
    def run(x: Any) -> Any:
        return explicit.automatic_with_states(step, (x,), lambda found: only_read.value)

    assert float(run(placed(X, "data"))[0, 0]) == pytest.approx(8 * float(jnp.tanh(6.0)))
    assert spec_of(state.value) == jax.P("data", None) and state.value[0, 0] == 2.0
    assert only_read.value[0, 0] == 1.0


@pytest.mark.parametrize("what", ["states", "arguments"])
def test_either_of_states_and_arguments_may_lie_on_a_mesh(what: str) -> None:
    """JAX refuses an operation on arrays of which one alone has a place."""
    xs = jax.random.normal(jax.random.key(0), (5, 4, 3))

    def found(on_mesh: bool) -> Any:
        brainstate.random.seed(0)
        learner = bt.compile(bt.nn.GRUCell(3, 2), "d_rtrl", xs[0], batch_size=4)
        h, inputs = learner.model.h, xs
        if on_mesh and what == "states":
            h.value = placed(h.value, "data")
        elif on_mesh:
            inputs = placed(xs, None, "data")

        def loss(x: Any) -> Any:
            return (learner(x) ** 2).sum()

        grads = learner.etrace_grad(inputs, step_fn=loss)
        learner.etrace_evolve(inputs)
        losses = learner.etrace_update(inputs, step_fn=loss, optimizer=optax.sgd(0.1))
        return grads, losses, h.value, learner(inputs[0])

    assert_tree_close(found(True), found(False))
