# SPDX-License-Identifier: Apache-2.0
"""Loops written out, and loops without a derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.base import versions
from braintrace.compiler.control.loops import (
    fixed_in_body,
    loops_without_derivative,
    run_iterations,
)

XS = np.arange(6.0).reshape(3, 2)


def equation(fun: Any, *args: Any, name: str = "scan") -> Any:
    eqns = versions.make_jaxpr(fun, *args).eqns
    return next(eqn for eqn in eqns if eqn.primitive.name == name)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [3, 0])
def test_iterations_one_after_the_other(length: int, reverse: bool) -> None:
    def loop(w: Any, c: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda c, x: (w * c + x, (c, x[0])), c, xs, reverse=reverse)

    args = np.array(0.5), np.ones(2), XS[:length]
    eqn = equation(loop, *args)
    found = run_iterations(eqn, versions.sub_jaxpr(eqn), *args)
    for a, b in zip(found, jax.tree.leaves(loop(*args)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_carried_value_is_fixed_if_all_behind_it_is() -> None:
    def loop(w: Any, a: Any, b: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            a, b = carry
            return (w * a, b + x), None

        return jax.lax.scan(body, (a, b), xs)

    eqn = equation(loop, 2.0, 1.0, 1.0, np.ones(3))
    assert fixed_in_body(eqn, [True, True, True, False]) == [True, True, False, False]
    assert fixed_in_body(eqn, [False, True, True, True]) == [False, False, True, True]


def halved(x: Any) -> Any:
    return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (0.5 * c[0], c[1] + 1), (x, 0))[0]


PROGRAMS: dict[str, tuple[Any, int]] = {
    "on the way": (lambda x, y: halved(x) + y, 1),
    "beside it": (lambda x, y: (halved(jax.lax.stop_gradient(x)) * y).sum(), 0),
    "of integers": (lambda x, y: x * jax.lax.while_loop(lambda n: n < 9, lambda n: n + 1, 0), 0),
    "in a branch": (lambda x, y: jax.lax.cond(y > 0, halved, jnp.sin, x), 1),
    "in a scan": (lambda x, y: jax.lax.scan(lambda c, _: (halved(c), None), x, None, 2)[0], 1),
    "behind it": (lambda x, y: x + jax.lax.stop_gradient(halved(x)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_while_on_the_way_of_a_derivative_is_found(name: str) -> None:
    program, count = PROGRAMS[name]
    jaxpr = versions.make_jaxpr(program, 1.0, 2.0)
    found = [*loops_without_derivative(jaxpr)]
    assert [eqn.primitive.name for eqn in found] == ["while"] * count


def test_only_some_inputs_and_outputs_count() -> None:
    jaxpr = versions.make_jaxpr(lambda x, y: (halved(x), y), 1.0, 2.0)
    assert len([*loops_without_derivative(jaxpr, {0}, {0})]) == 1
    assert [*loops_without_derivative(jaxpr, {1})] == []
    assert [*loops_without_derivative(jaxpr, None, {1})] == []
