# SPDX-License-Identifier: Apache-2.0
"""References as values, and which of them stay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from braintrace.base import versions
from braintrace.compiler.tracing.effects import holds_a_reference, with_kept_effects

X = jnp.arange(12.0).reshape(3, 4)


def whole(x: Any, i: Any) -> Any:
    ref = jax.new_ref(x)
    ref[...] = 2 * ref[...]
    return jax.freeze(ref)


def parts(x: Any, i: Any) -> Any:
    ref, other = jax.new_ref(x), jax.new_ref(x[0])
    ref[:, 1::2] = ref[:, ::2] - 1
    other[1:3] = ref[i, :2]
    jax.ref.addupdate(ref, (slice(1, 3), i), other[:2])
    return ref[2] + other[...] + ref[0, i]


def no_effect(x: Any, i: Any) -> Any:
    return x + i


def gathered(x: Any, i: Any) -> Any:
    return jax.new_ref(x)[jnp.array([0, 2])]


def in_a_loop(x: Any, i: Any) -> Any:
    ref = jax.new_ref(x)

    def body(k: Any, _: Any) -> Any:
        ref[...] = 2 * ref[...]
        return k, None

    jax.lax.scan(body, 0, length=2)
    return ref[...]


def program(function: Any) -> Any:
    return versions.make_jaxpr(lambda x, i: [function(x, i)], X, 1)


@pytest.mark.parametrize("function", [whole, parts])
def test_a_reference_is_a_value(function: Any) -> None:
    jaxpr = program(function)
    found = with_kept_effects(jaxpr)
    assert any(map(holds_a_reference, jaxpr.eqns)) and not any(map(holds_a_reference, found.eqns))
    for i in range(2):
        results = (versions.jaxpr_as_fun(p)(X, i)[0] for p in (jaxpr, found))
        np.testing.assert_allclose(*results)


@pytest.mark.parametrize("function", [no_effect, gathered, in_a_loop])
def test_what_stays(function: Any) -> None:
    jaxpr = program(function)
    assert with_kept_effects(jaxpr) is jaxpr
    assert any(map(holds_a_reference, jaxpr.eqns)) is (function is not no_effect)


def test_a_call_is_one_that_a_differentiated_loop_keeps() -> None:
    told: list[float] = []

    def step(x: Any, i: Any) -> Any:
        io_callback(lambda v: told.append(float(v)), None, x[0, 0] + i, ordered=True)
        return jnp.sin(x)

    found = with_kept_effects(program(step))
    assert [e.primitive.name for e in found.eqns if e.effects] == ["debug_callback"]

    def loss(x: Any) -> Any:
        run = versions.jaxpr_as_fun(found)
        return jax.lax.scan(lambda x, i: (run(x, i)[0], None), x, jnp.arange(3))[0].sum()

    jax.block_until_ready(jax.jit(jax.grad(loss))(X))
    jax.effects_barrier()
    assert told == [0.0, 1.0, 2.0]
