# SPDX-License-Identifier: Apache-2.0
"""Which weights that move are taken into their operation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.compiler.tracing.moving import with_constant_weights

W, V, X = np.ones((3, 4, 4)), np.ones((4, 4)), np.linspace(-1, 1, 8).reshape(2, 4)

FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "a choice": (lambda w, v, x, i: bt.matmul(x, jnp.abs(w)[i % 3]), True),
    "a mask": (lambda w, v, x, i: bt.matmul(x, jnp.where(jnp.arange(4) > i, v, 0.0)), True),
    "a mixture": (lambda w, v, x, i: bt.matmul(x, jnp.tensordot(x[0, :3], w, 1)), True),
    "what another operation gives": (
        lambda w, v, x, i: bt.matmul(x, v * jnp.sin(bt.matmul(x, w[0])[0])), True,
    ),
    "no weight": (lambda w, v, x, i: bt.matmul(x, x.T @ x) + bt.matmul(x, v), False),
    "constant": (lambda w, v, x, i: bt.matmul(x, jnp.abs(w[1]) * v) + i, False),
    "held": (lambda w, v, x, i: bt.matmul(x, jax.lax.stop_gradient(v) * i), False),
    "places change": (lambda w, v, x, i: bt.matmul(x, jnp.roll(v, i, 0)), "dense"),
    "turned": (lambda w, v, x, i: bt.matmul(x, (v * i).T), "dense"),
    "mixed": (lambda w, v, x, i: bt.matmul(x, v - i * v.mean()), "dense"),
    "two weights": (lambda w, v, x, i: bt.matmul(x, v * i + w[0]), "dense"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_taken_in(name: str) -> None:
    function, taken = FUNCTIONS[name]
    jaxpr = versions.make_jaxpr(lambda *args: [function(*args)], W, V, X, 1)
    found = with_constant_weights(jaxpr, [True, True, False, False])
    moved = [e for e in found.eqns if e.primitive.name == "etp_mm_moving"]
    assert bool(moved) is bool(taken) is (found is not jaxpr)
    assert all(e.primitive.spec.dense is (taken == "dense") for e in moved)
    (a,), (b,) = (versions.jaxpr_as_fun(program)(W, V, X, 2) for program in (jaxpr, found))
    np.testing.assert_allclose(a, b, rtol=1e-6)
