# SPDX-License-Identifier: Apache-2.0
"""A value with the derivative of another one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.base import versions
from braintrace.compiler.module_info import is_barrier
from braintrace.jaxprs.credit import across, run_uncredited, with_credit


def step(x: Any) -> Any:
    return with_credit(jnp.floor(x) * 10.0, x**2)


def test_the_value_is_one_and_the_derivative_is_the_others() -> None:
    x = jnp.array([1.5, 2.5])
    assert step(x).tolist() == jax.jit(step)(x).tolist() == [10.0, 20.0]
    assert jax.grad(lambda x: step(x).sum())(x).tolist() == [3.0, 5.0]
    assert jax.jvp(step, (x,), (jnp.ones(2),))[1].tolist() == [3.0, 5.0]


def test_under_vmap() -> None:
    x = jnp.arange(6.0).reshape(3, 2)
    assert jnp.array_equal(jax.vmap(step)(x), step(x))
    slopes = jax.vmap(jax.grad(lambda x: step(x).sum()))(x)
    assert jnp.array_equal(slopes, 2 * x)
    own = jnp.array([7.0, 8.0])  # the same for all that are mapped over
    found = jax.vmap(lambda x: with_credit(own, x**2), in_axes=1)(x.T)
    assert found.tolist() == [[7.0, 8.0]] * 3
    assert jax.vmap(lambda x: with_credit(x, own), in_axes=1)(x.T).tolist() == x.tolist()


def test_the_value_itself_has_no_derivative() -> None:
    found = jax.grad(lambda a: with_credit(3.0 * a, jnp.zeros(())))(1.0)
    assert float(found) == 0.0


def test_a_run_with_the_derivatives_of_the_values_themselves() -> None:
    program = versions.make_jaxpr(lambda x: [with_credit(3.0 * x, x**2)], jnp.ones(()))

    def run(x: Any) -> Any:
        env = versions.start_env(program, [x])
        run_uncredited(program.eqns, env)
        return env[program.outvars[0]]

    assert float(run(2.0)) == 6.0 and float(jax.grad(run)(2.0)) == 3.0


def test_across_is_a_value_behind_which_no_state_keeps_a_trace() -> None:
    (eqn,) = jax.make_jaxpr(across)(1.0).eqns[-1:]
    assert is_barrier(eqn)
    assert jax.value_and_grad(lambda x: 3 * across(x))(2.0) == (6.0, 3.0)
