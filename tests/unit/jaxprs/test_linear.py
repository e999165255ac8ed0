# SPDX-License-Identifier: Apache-2.0
"""In which operands an equation is linear, and what is the same everywhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.jaxprs.credit import with_credit
from braintrace.jaxprs.linear import ITSELF, affine_part, same_along
from braintrace.jaxprs.run import run_inlined


@jax.custom_jvp
def straight_through(x: Any) -> Any:
    return jnp.round(x)


straight_through.defjvp(lambda p, t: (straight_through(*p), t[0]))


@jax.custom_jvp
def doubled(x: Any) -> Any:
    return 2 * x


doubled.defjvp(lambda p, t: (doubled(*p), 2 * t[0]))


@jax.custom_jvp
def line(x: Any) -> Any:
    return x * x


line.defjvp(lambda p, t: (line(*p), t[0]))

OPERATIONS = {
    "product": (lambda x, w, b: x @ w, frozenset()),
    "bias": (lambda x, w, b: x @ w + b, {2, ITSELF}),
    "number": (lambda x, w, b: x @ w + 1.0, {ITSELF}),
    "scaled": (lambda x, w, b: (2 * x) @ (w * jnp.abs(w)), frozenset()),
    "bias inside": (lambda x, w, b: (x + b[:3]) @ w, {1, 2, ITSELF}),
    "called": (lambda x, w, b: jax.jit(jnp.matmul)(x, w) + b, {2, ITSELF}),
    "straight through": (lambda x, w, b: straight_through(x) @ w, None),
    "sign": (lambda x, w, b: x @ w + jnp.sign(x) @ w, None),
    "compared": (lambda x, w, b: x @ w + (x > 0).astype(x.dtype) @ w, None),
    "called step": (lambda x, w, b: jax.jit(jnp.round)(x) @ w, None),
    "own rule": (lambda x, w, b: doubled(x) @ w, frozenset()),
    "square with the rule of a line": (lambda x, w, b: line(x) @ w, None),
    "held": (lambda x, w, b: jax.lax.stop_gradient(x) @ w, None),
    "square": (lambda x, w, b: (x * x) @ w, None),
    "gated": (lambda x, w, b: jax.nn.relu(x @ w), None),
    "no input": (lambda x, w, b: w.sum(0) + b + 0 * x[..., :1], {1, 2, ITSELF}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_part_that_does_not_depend_on_the_input(name: str) -> None:
    impl, expected = OPERATIONS[name]
    primitive = bt.register_primitive(
        f"unit_linear_{name.replace(' ', '_')}",
        impl,
        trainable_invars_fn=lambda params: {"weight": 1, "bias": 2},
        owner="tests",
    )
    jaxpr = jax.make_jaxpr(primitive.bind)(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4))
    assert affine_part(jaxpr.eqns[0], 0) == expected


CONSTANT = np.asarray([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]])
VALUES = {
    "input": (lambda a, s: a, set()),
    "scalar": (lambda a, s: jnp.broadcast_to(s, (2, 3)), {0, 1}),
    "per example": (lambda a, s: jnp.broadcast_to(a[:, :1], (2, 3)), {1}),
    "exponential": (lambda a, s: jnp.exp(-jnp.broadcast_to(a[:, :1], (2, 3)) / s), {1}),
    "constant": (lambda a, s: jnp.asarray(CONSTANT) * s, {0}),
    "reshaped": (lambda a, s: a[:, :1].reshape(1, 2, 1) + jnp.zeros((1, 2, 3)), {0, 2}),
    "reduced": (lambda a, s: a.sum(1, keepdims=True), {1}),
    "chosen": (lambda a, s: jnp.where(s > 0, 1.0, jnp.zeros((2, 3))), {0, 1}),
}


@pytest.mark.parametrize("name", VALUES)
def test_axes_along_which_a_value_is_the_same(name: str) -> None:
    function, expected = VALUES[name]
    jaxpr = jax.make_jaxpr(function)(jnp.ones((2, 3)), 1.0)
    flat = versions.make_jaxpr(lambda *v: run_inlined(jaxpr, v), *jaxpr.in_avals)
    eqns = {var: eqn for eqn in flat.eqns for var in eqn.outvars}
    found = same_along(flat.outvars[0], eqns, versions.constants(flat), {})
    assert found == expected


def test_a_value_with_the_credit_of_another() -> None:
    def function(a: Any, b: Any) -> Any:
        return (with_credit(a, jnp.sin(b)) * 3.0).sum()

    a, b = jnp.asarray([1.0, 2.0]), jnp.asarray([0.5, 0.7])
    assert float(function(a, b)) == pytest.approx(9.0)
    da, db = jax.grad(function, (0, 1))(a, b)
    np.testing.assert_array_equal(da, 0.0)
    np.testing.assert_allclose(db, 3 * jnp.cos(b), rtol=1e-6)
    many = jax.jit(jax.vmap(with_credit, (0, None)))(jnp.ones((3, 2)), b)
    np.testing.assert_array_equal(many, jnp.ones((3, 2)))
    lowered = jax.jit(lambda a, b: with_credit(a, jnp.sin(b))).lower(a, b)
    assert "sine" not in lowered.compile().as_text()
