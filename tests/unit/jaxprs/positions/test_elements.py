# SPDX-License-Identifier: Apache-2.0
"""The walk through a program: what its inputs reach, control flow and custom rules included."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad

from braintrace.jaxprs.positions.elements import through, tracing_once
from braintrace.jaxprs.positions.places import NOTHING, SEVERAL, own_places

lax = jax.lax


def reached(fun: Any, *sizes: int) -> list[Any]:
    """What the elements of each vector reach in the one result, a vector."""
    jaxpr = jax.make_jaxpr(fun)(*(jnp.ones(n) for n in sizes))
    (out,) = jaxpr.out_avals
    found = through(jaxpr, range(len(sizes)), [own_places(out.shape, (0,))])
    pairs = zip(found, sizes, strict=True)
    return [places and np.broadcast_to(places[0], n).tolist() for places, n in pairs]


def rotated(v: Any, turns: int) -> Any:
    return lax.fori_loop(0, turns, lambda i, c: jnp.roll(c, 1), v)


@pytest.mark.parametrize(
    ("fun", "sizes", "expected"),
    [
        (lambda a, b: a * 2.0 + b[0], (3, 2), [[0, 1, 2], [SEVERAL, NOTHING]]),
        (lambda a, b: a[1:], (3, 2), [[NOTHING, 0, 1], None]),
        (lambda a, b: lax.stop_gradient(a) + b, (2, 2), [None, [0, 1]]),
        (lambda a, b: a + (b > 0), (2, 2), [[0, 1], None]),
        (lambda a: jax.jit(jnp.sin)(a[::-1]), (3,), [[2, 1, 0]]),
        (lambda a, b: lax.cond(a[0] > 0, lambda: a, lambda: b[::-1]), (2, 2), [[0, 1], [1, 0]]),
        (lambda a: lax.cond(True, lambda: a, lambda: a[::-1]), (3,), [[SEVERAL, 1, SEVERAL]]),
        (lambda a: rotated(a, 2), (3,), [[SEVERAL] * 3]),
        (lambda a: rotated(a, 0), (3,), [[0, 1, 2]]),
        (lambda a: lax.scan(lambda c, x: (c, x * c), 2.0, a)[1], (3,), [[SEVERAL] * 3]),
        (lambda a, b: lax.scan(lambda c, x: (c + x, x), b, a[None])[0], (2, 2), [[0, 1], [0, 1]]),
        (
            lambda a, b: lax.while_loop(lambda c: c.sum() < 9.0, lambda c: c * (1.0 + b), a),
            (2, 2),
            [[0, 1], [0, 1]],
        ),
        (lambda a: jax.nn.relu(a[::-1]), (2,), [[1, 0]]),
        (lambda a: jnp.fft.fft(a).real, (2,), [[SEVERAL] * 2]),
    ],
)
def test_what_inputs_reach(fun: Any, sizes: tuple[int, ...], expected: list[Any]) -> None:
    assert reached(fun, *sizes) == expected


def linear_primitive(name: str, of_tangents: Any) -> Any:
    """A primitive of another library, ``x / 2``, whose tangents ``of_tangents`` gives."""
    made = Primitive(name)
    made.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    made.def_impl(lambda x: x / 2)
    ad.primitive_jvps[made] = lambda xs, dots: (made.bind(xs[0]), of_tangents(dots[0]))
    return made


def rules_without_end() -> dict[str, Any]:
    """Functions whose rule of differentiation leads to themselves."""
    own = linear_primitive("unit_halve", lambda dot: jax.jit(own.bind)(dot))
    one = linear_primitive("unit_halve_one", lambda dot: jax.jit(other.bind)(dot))
    other = linear_primitive("unit_halve_other", lambda dot: one.bind(dot))
    pushed, pulled = jax.custom_jvp(lambda x: x / 2), jax.custom_vjp(lambda x: x / 2)
    pushed.defjvp(lambda xs, dots: (pushed(*xs), jax.jit(pushed)(*dots)))
    pulled.defvjp(lambda x: (pulled(x), None), lambda _, bar: (pulled(bar),))
    found = {"through a call": own.bind, "through another": one.bind}
    return found | {"of a custom_jvp": pushed, "of a custom_vjp": pulled}


@pytest.mark.parametrize("name", rules_without_end())
def test_a_rule_that_leads_to_itself_mixes_what_it_may(name: str) -> None:
    halve = rules_without_end()[name]
    assert reached(lambda a, b: halve(a) + b, 2, 2) == [[SEVERAL] * 2, [0, 1]]


def test_the_rule_of_a_function_is_traced_once_for_all_its_calls() -> None:
    followed = []

    def mirrored(scale: float) -> Any:
        @jax.custom_jvp
        def function(x: Any) -> Any:
            return scale * x

        @function.defjvp
        def rule(primals: Any, dots: Any) -> Any:
            followed.append(scale)
            return function(*primals), scale * dots[0][::-1]

        return function

    once, other = mirrored(2.0), mirrored(3.0)
    with tracing_once():
        assert reached(lambda x: once(once(x)) + once(2 * x)[::-1], 2) == [[0, 1]]
        assert followed == [2.0]
        assert reached(lambda x: other(x), 2) == [[1, 0]] and reached(once, 3) == [[2, 1, 0]]
    assert followed == [2.0, 3.0, 2.0] and reached(once, 2) == [[1, 0]]
    assert len(followed) == 4


def test_rules_with_static_arguments_are_told_apart() -> None:
    @partial(jax.custom_jvp, nondiff_argnums=(1,))
    def turned(x: Any, turns: int) -> Any:
        return x

    @turned.defjvp
    def rule(turns: int, primals: Any, dots: Any) -> Any:
        return primals[0], jnp.roll(dots[0], turns)

    with tracing_once():
        assert reached(lambda x: turned(turned(x, 1), 2), 4) == [[3, 0, 1, 2]]
