# SPDX-License-Identifier: Apache-2.0
"""Branches for one example, and under vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.base import versions
from braintrace.compiler.control.selects import with_selects, with_whole_branches

X = jnp.asarray([1.0, -2.0, 0.5])
BRANCHES: dict[str, tuple[tuple[Callable[..., Any], Callable[..., Any]], bool]] = {
    "kept or nothing": ((jnp.zeros_like, lambda y: 0.5 * y), True),
    "two factors": ((lambda y: y, lambda y: 0.5 * y), False),
    "curved": ((jnp.zeros_like, jnp.tanh), False),
    "infinite": ((jnp.zeros_like, lambda y: jnp.inf * y), False),
    "a product of values": ((jnp.zeros_like, lambda y: y * y), False),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_which_are_selects(name: str) -> None:
    branches, expected = BRANCHES[name]

    def step(x: Any) -> Any:
        y = jnp.sin(x)
        return [jax.lax.cond(x.sum() > 0, *branches, y)]

    plain = versions.make_jaxpr(step, X)
    found = with_selects(plain)
    names = {eqn.primitive.name for eqn in found.eqns}
    assert ("select_n" in names) == expected and ("cond" in names) != expected
    assert expected or found is plain
    for x in (X, X + 1):
        np.testing.assert_array_equal(versions.jaxpr_as_fun(found)(x)[0], step(x)[0])


def test_a_state_may_be_in_several_branches() -> None:
    def step(v: Any, x: Any) -> Any:
        return [jax.lax.cond(x.sum() > 0, lambda v, y: 0.9 * v + y, lambda v, _: v, v, 2 * x)]

    names = {e.primitive.name for e in with_selects(versions.make_jaxpr(step, X, X)).eqns}
    assert "select_n" in names and "cond" not in names


def test_mapped_branches_have_their_values_and_derivatives() -> None:
    def step(x: Any) -> Any:
        return [jax.lax.cond(x.sum() > 0, jnp.tanh, lambda y: y, x), x]

    whole = versions.jaxpr_as_fun(with_whole_branches(versions.make_jaxpr(step, X)))
    xs = jnp.stack([X, X + 1])
    for run in (jax.vmap(lambda x: whole(x)[0]), jax.vmap(jax.grad(lambda x: whole(x)[0].sum()))):
        np.testing.assert_allclose(jax.jit(run)(xs), run(xs), rtol=1e-6)
    plain = jax.vmap(jax.grad(lambda x: step(x)[0].sum()))(xs)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda x: whole(x)[0].sum()))(xs), plain)
