# SPDX-License-Identifier: Apache-2.0
"""Running equations, calls inlined and outputs made distinct."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import check_jaxpr

import braintrace as bt
from braintrace.base import versions
from braintrace.jaxprs.run import flatten, read, run_equations, run_inlined

scale_p = bt.register_primitive("unit_run_scale", lambda x, w: x * w)


def called(x: Any, w: Any) -> Any:
    return jax.jit(jax.checkpoint(lambda x: jnp.sin(scale_p.bind(x, w))))(x), x


def test_equations_write_to_the_environment() -> None:
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x) * 2.0)(1.0)
    env = {jaxpr.invars[0]: 0.5}
    run_equations(jaxpr.eqns, env)
    assert read(env, jaxpr.outvars[0]) == 2.0 * jnp.sin(0.5)


def test_calls_are_run_equation_by_equation() -> None:
    jaxpr, met = jax.make_jaxpr(called)(1.0, 2.0), []

    def run(x: Any, w: Any) -> Any:
        return run_inlined(jaxpr, [x, w], note=met.append)

    inlined = jax.make_jaxpr(run)(1.0, 2.0)
    assert [eqn.primitive.name for eqn in inlined.eqns] == ["unit_run_scale", "sin"]
    assert [eqn.primitive for eqn in met] == [scale_p]
    assert run(1.0, 2.0) == [jnp.sin(2.0), 1.0]


def test_inputs_are_permuted_and_outputs_distinct() -> None:
    jaxpr = jax.make_jaxpr(lambda a, b: (a, b * 2.0, b * 2.0 + a))(1.0, 2.0)
    flat = flatten(jaxpr, [1, 0], [1, 0, 1], own=[0, 1, 2])
    check_jaxpr(getattr(flat, "jaxpr", flat))
    assert versions.jaxpr_as_fun(flat)(2.0, 1.0) == [4.0, 1.0, 4.0]
    first, copied, again = flat.outvars
    assert len({first, copied, again, *flat.invars}) == 5
