# SPDX-License-Identifier: Apache-2.0
"""Values in half precision, with derivatives that are not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.base import versions
from braintrace.jaxprs.run import read
from braintrace.jaxprs.wide import run_widened

FLOAT32 = jnp.dtype("float32")


@jax.custom_jvp
def spike(v: Any) -> Any:
    return (v > 0).astype(v.dtype)


spike.defjvp(lambda primals, dots: (spike(*primals), dots[0] / (1 + jnp.abs(primals[0]))))


def step(h: Any, x: Any, w: Any) -> Any:
    """Products, sums, a conversion, a function of its own rule and a loop."""
    h = jnp.bfloat16(0.75) * h + (x @ w).astype(h.dtype)
    h = jax.lax.scan(lambda h, _: (h + jnp.bfloat16(0.1) * jnp.sin(h), None), h, length=2)[0]
    return h + spike(h), jnp.argmax(h)


def program() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    h, x, w = (jnp.asarray(rng.normal(size=s), "bfloat16") for s in [(2, 4), (2, 3), (3, 4)])
    w = w.astype("float32")
    inlined = versions.make_jaxpr(lambda *args: jax.tree.leaves(step(*args)), h, x, w)
    return inlined, (h, x, w)


def widened(jaxpr: Any, *inputs: Any) -> Any:
    env = versions.start_env(jaxpr, inputs)
    run_widened(jaxpr.eqns, env, FLOAT32)
    return [read(env, atom) for atom in jaxpr.outvars]


def test_values_are_those_of_the_program() -> None:
    jaxpr, inputs = program()
    new, index = widened(jaxpr, *inputs)
    own, own_index = versions.jaxpr_as_fun(jaxpr)(*inputs)
    assert new.dtype == FLOAT32 and int(index) == int(own_index)
    np.testing.assert_array_equal(new, own.astype("float32"))


def test_derivatives_do_not_overflow() -> None:
    """Those of a sum of numbers that float16 does not hold."""
    x = jnp.full(3, 300, "float16")
    jaxpr = versions.make_jaxpr(lambda x: [x * jnp.float16(2) + jnp.float16(1)], x)

    def total(x: Any) -> Any:
        return (1e4 * widened(jaxpr, x)[0]).sum()

    assert jax.grad(total)(x.astype("float32")).tolist() == [2e4] * 3


@pytest.mark.parametrize("wanted", [0, 2])
def test_derivatives_are_close_to_those_in_a_wide_dtype(wanted: int) -> None:
    jaxpr, inputs = program()

    def total(value: Any) -> Any:
        full = [*inputs]
        full[wanted] = value
        return (jnp.arange(8.0).reshape(2, 4) * widened(jaxpr, *full)[0]).sum()

    found = jax.grad(total)(inputs[wanted].astype("float32"))
    wide = versions.make_jaxpr(lambda *args: jax.tree.leaves(step(*args)), *inputs)
    own = jax.grad(
        lambda v: (
            jnp.arange(8.0).reshape(2, 4)
            * versions.jaxpr_as_fun(wide)(*inputs[:wanted], v, *inputs[wanted + 1 :])[0]
        ).sum()
    )(inputs[wanted])
    assert found.dtype == FLOAT32
    np.testing.assert_allclose(found, own.astype("float32"), rtol=0.05, atol=0.05)
    if wanted == 0:  # in its own dtype, it is rounded
        assert np.any(np.asarray(found) != np.asarray(own.astype("float32")))


def test_what_has_effects_is_run_once() -> None:
    told: list[Any] = []

    def function(x: Any) -> Any:
        jax.debug.callback(lambda v: told.append(float(v)), x)
        return [x + x]

    x = jnp.asarray(1.5, "bfloat16")
    jaxpr = versions.make_jaxpr(function, x)
    jax.block_until_ready(jax.jit(lambda x: widened(jaxpr, x))(x))
    jax.effects_barrier()
    assert told == [1.5]
