# SPDX-License-Identifier: Apache-2.0
"""Which equations of a loop's body have to be run step by step, and which for all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.jaxprs.stages import Loop, Stages, Together, stages_of

W = np.ones((3, 3))


def parts_of(body: Callable[..., Any], start: Any, x: Any) -> tuple[Stages, list[tuple[str, int]]]:
    """The stages of a body, and of each its kind and how many products it has."""
    jaxpr = jax.make_jaxpr(body)(start, x)
    carried = len(jax.tree.leaves(start))
    found = stages_of(jaxpr, carried, [*dict.fromkeys(jaxpr.outvars[carried:])])
    run = [i for part in found.parts for i in part.eqns]
    assert len(run) == len({*run})  # each equation once, but what is the same at every step

    def products(part: Together | Loop) -> int:
        return sum(jaxpr.eqns[i].primitive.name == "dot_general" for i in part.eqns)

    return found, [(type(part).__name__.lower(), products(part)) for part in found.parts]


def leaky(v: Any, current: Any) -> Any:
    return 0.9 * v + current


def test_layers_are_run_one_after_the_other() -> None:
    def body(carry: Any, x: Any) -> Any:
        a, b, w = carry
        a = leaky(a, x @ w)
        b = leaky(b, jnp.tanh(a) @ w)
        return (a, b, w), ((b @ W - x) ** 2).sum()

    found, parts = parts_of(body, (jnp.ones(3), jnp.ones(3), W), jnp.ones(3))
    products = [("together", 1), ("loop", 0), ("together", 1), ("loop", 0), ("together", 1)]
    assert parts == products
    first, second = (part for part in found.parts if isinstance(part, Loop))
    assert (first.carried, second.carried) == ((0,), (1,))
    assert len(first.eqns) == len(second.eqns) == 2  # a leak and a sum: no square, no loss
    assert [len(part.results) for part in found.parts] == [1, 1, 1, 1, 1]
    assert found.bytes_per_step == 4 * jnp.ones(3).nbytes  # currents, and what both layers hand out


def test_what_is_recurrent_stays_in_the_loop() -> None:
    def body(carry: Any, x: Any) -> Any:
        h, past, _ = carry
        new = jnp.tanh(x @ W + past @ W)  # reads the step before the last one
        return (new, h, jnp.exp(x)), (new @ W).sum()

    start = jnp.ones(3), jnp.ones(3), jnp.ones(3)
    found, parts = parts_of(body, start, jnp.ones(3))
    assert parts == [("together", 1), ("loop", 1), ("together", 1)]
    assert isinstance(found.parts[1], Loop) and found.parts[1].carried == (0, 1, 2)


def test_steps_between_recurrences_without_a_product_make_no_loop_of_their_own() -> None:
    def body(carry: Any, x: Any) -> Any:
        h, mean, last = carry
        h = leaky(h, x)
        mean = leaky(mean, h**2)
        return (h, mean, 1.0), mean / (1.0 + last)

    _, parts = parts_of(body, (jnp.ones(3), jnp.ones(3), 0.0), jnp.ones(3))
    assert parts == [("loop", 0), ("together", 0)]


def test_what_would_be_another_program_for_several_steps_is_run_step_by_step() -> None:
    def body(carry: Any, x: Any) -> Any:
        key, h = carry
        key, own = jax.random.split(key)
        h = leaky(h, (x * jax.random.bernoulli(own, 0.5, (3,))) @ W)
        y = jax.lax.cond(h.sum() > 0, jnp.sin, jnp.cos, h @ W)
        return (key, h), (y, jax.lax.map(jnp.exp, h))

    start = jax.random.PRNGKey(0), jnp.ones(3)
    _, parts = parts_of(body, start, jnp.ones(3))
    assert parts == [("loop", 0), ("together", 1), ("loop", 0), ("together", 1), ("loop", 0)]
