# SPDX-License-Identifier: Apache-2.0
"""What a result depends on: through branches, loops and calls, by value and by derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from braintrace.jaxprs.depends import (
    Along,
    carries,
    depends,
    influences,
    moving_with,
    operands_behind,
    program_influences,
    slice_to,
)

lax = jax.lax


def behind(fun: Callable[..., Any], *args: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Per output, the inputs behind its value and behind its derivative."""
    jaxpr = jax.make_jaxpr(fun)(*args)
    values, derivatives = (
        [sorted(found) for found in program_influences(jaxpr, along)]
        for along in (Along.VALUES, Along.DERIVATIVES)
    )
    return values, derivatives


def test_dependence_through_a_branch() -> None:
    def fun(p: Any, a: Any, b: Any, c: Any) -> Any:
        return lax.cond(p > 0, lambda: (a + b, a, 1.0), lambda: (a, jnp.sin(c), 2.0))

    values, derivatives = behind(fun, 1.0, 1.0, 2.0, 3.0)
    assert values == [[0, 1, 2], [0, 1, 3], [0]]
    assert derivatives == [[1, 2], [1, 3], []]


def test_dependence_through_a_scan() -> None:
    def fun(a: Any, b: Any, c: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            first, second, third = carry
            return (second, jnp.sin(c) * second, x), (first * x, third)

        return lax.scan(body, (a, b, 0.0), xs)

    values, derivatives = behind(fun, 1.0, 2.0, 3.0, jnp.ones(3))
    expected = [[1, 2], [1, 2], [3], [0, 1, 2, 3], [3]]
    assert values == expected
    assert derivatives == expected


def test_dependence_through_a_while() -> None:
    def fun(n: Any, a: Any, b: Any) -> Any:
        return lax.while_loop(
            lambda c: c[0] < n, lambda c: (c[0] + 1.0, c[1] * b, -c[2]), (0.0, a, a)
        )

    values, derivatives = behind(fun, 3.0, 1.0, 2.0)
    assert values == [[0], [0, 1, 2], [0, 1]]
    assert derivatives == [[], [1, 2], [1]]


def test_dependence_through_a_call_and_stopped_gradients() -> None:
    def fun(a: Any, b: Any) -> Any:
        order = jnp.argsort(b)
        return jax.jit(lambda a, b: (a * 2.0, lax.stop_gradient(b) + a))(a, b), b[order], order

    values, derivatives = behind(fun, jnp.ones(3), jnp.arange(3.0))
    assert values == [[0], [0, 1], [1], [1]]
    assert derivatives == [[0], [0], [1], []]


def test_custom_rules_are_not_looked_into() -> None:
    @jax.custom_vjp
    def crossed(a: Any, b: Any) -> Any:
        return a * 2.0, b * 3.0

    crossed.defvjp(lambda a, b: (crossed(a, b), None), lambda _, g: (g[1], g[0]))
    assert behind(crossed, 1.0, 2.0)[1] == [[0, 1], [0, 1]]


def test_what_stands_behind_an_integer_is_not_on_the_path() -> None:
    inlined = jax.make_jaxpr(lambda v: v + lax.sort((v, lax.iota("int32", 3)), num_keys=1)[1])
    jaxpr = inlined(jnp.ones(3))
    names = [jaxpr.eqns[i].primitive.name for i in slice_to(jaxpr.eqns, jaxpr.outvars)]
    smooth = slice_to(jaxpr.eqns, jaxpr.outvars, along=Along.DERIVATIVES)
    assert "sort" in names
    assert "sort" not in [jaxpr.eqns[i].primitive.name for i in smooth]
    assert program_influences(jaxpr, Along.DERIVATIVES) == ({0},)


def test_marks_follow_only_what_reaches_a_result() -> None:
    def fun(p: Any, a: Any, b: Any) -> Any:
        return lax.cond(p > 0, lambda: (a, jnp.cos(b)), lambda: (jnp.sin(a), b))

    jaxpr = jax.make_jaxpr(fun)(1.0, 2.0, 3.0)
    (cond,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    assert all(len(found) == 2 for found in influences(cond, Along.VALUES) or ())
    marks = depends(jaxpr.eqns, {jaxpr.invars[1]: frozenset("a")}, along=Along.DERIVATIVES)
    first, second = jaxpr.outvars
    assert marks[first] == {"a"}
    assert second not in marks


def test_equations_are_run_as_a_whole() -> None:
    """A result of a call moves with all of its operands, and is computed by all of them."""

    def fun(a: Any, b: Any) -> Any:
        first, second = jax.jit(lambda a, b: (jnp.sin(a), jnp.cos(b)))(a, b)
        return first * 2.0, second + b

    jaxpr = jax.make_jaxpr(fun)(1.0, 2.0)
    call, product, total = jaxpr.eqns
    a, _ = jaxpr.invars
    assert moving_with(jaxpr.eqns, [a]) == {a, *call.outvars, *product.outvars, *total.outvars}
    assert list(operands_behind(call, [0], Along.VALUES)) == [0]
    assert list(operands_behind(call, [0], Along.EQUATIONS)) == [0, 1]
    assert slice_to(jaxpr.eqns, jaxpr.outvars[:1], along=Along.EQUATIONS) == [0, 1]


def test_results_of_equations_with_effects_move() -> None:
    def fun(a: Any) -> Any:
        jax.debug.callback(lambda v: None, a)
        return a + 1.0

    jaxpr = jax.make_jaxpr(fun)(1.0)
    assert moving_with(jaxpr.eqns, []) == set()
    random = jax.make_jaxpr(
        lambda: jax.experimental.io_callback(lambda: 1.0, jax.ShapeDtypeStruct((), "float32")) * 2.0
    )()
    assert moving_with(random.eqns, []) == {v for eqn in random.eqns for v in eqn.outvars}


def test_an_equation_that_carries_its_operands_keeps_them_apart() -> None:
    def fun(a: Any, b: Any) -> Any:
        a, b = lax.optimization_barrier((a, b))
        return jax.device_put((b, a))

    assert behind(fun, 1.0, 2.0) == ([[1], [0]], [[1], [0]])
    barrier, put = jax.make_jaxpr(fun)(1.0, 2.0).eqns
    assert carries(barrier) and carries(put)
    assert not carries(jax.make_jaxpr(lambda a: lax.reduce_precision(a, 5, 10))(1.0).eqns[0])
    assert list(operands_behind(barrier, [0], Along.EQUATIONS)) == [0, 1]
