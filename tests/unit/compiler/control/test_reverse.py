# SPDX-License-Identifier: Apache-2.0
"""Loops of unknown length against the same iterations, written in Python."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.base import versions
from braintrace.compiler.control.reverse import KEPT, reversible, with_reverse_mode
from braintrace.testing import assert_tree_close

ONE = np.ones(())
X, W = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(-0.5, 0.6, 9).reshape(3, 3)


def iteration(x: Any, w: Any, carry: Any, inner: Any) -> Any:
    """Positions mixed, an integer, a key and a loop inside."""
    i, h, key = carry
    key, now = jax.random.split(key)
    h = jnp.tanh(h @ w + x) * 0.9 + 0.1 * inner(h, w) + 0.01 * jax.random.normal(now, h.shape)
    return i + 1, h, key


def looped(x: Any, w: Any, n: Any, key: Any) -> Any:
    def inner(h: Any, w: Any) -> Any:
        start = h, 0
        return jax.lax.while_loop(
            lambda c: c[1] < 2, lambda c: (jnp.sin(c[0]) * w.mean(), c[1] + 1), start
        )[0]

    return jax.lax.while_loop(
        lambda carry: carry[0] < n, lambda carry: iteration(x, w, carry, inner), (0, x, key)
    )[1]


def by_hand(x: Any, w: Any, n: int, key: Any) -> Any:
    def inner(h: Any, w: Any) -> Any:
        return jnp.sin(jnp.sin(h) * w.mean()) * w.mean()

    carry = 0, x, key
    for _ in range(n):
        carry = iteration(x, w, carry, inner)
    return carry[1]


def program(key: Any) -> Any:
    seen: list[Any] = []
    jaxpr = versions.make_jaxpr(lambda x, w, n: [looped(x, w, n, key)], X, W, 1)
    found = with_reverse_mode(jaxpr, seen.append)
    assert [eqn.primitive.name for eqn in seen] == ["while"]
    assert [eqn.primitive.name for eqn in found.eqns].count("while") == 0
    run = versions.jaxpr_as_fun(found)
    return lambda *args: run(*args)[0]


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_the_gradient_is_that_of_the_iterations_that_ran(make: Any) -> None:
    run, key = program(make(0)), make(0)

    @jax.jit
    def found(x: Any, w: Any, n: Any) -> Any:
        return jax.grad(lambda x, w: (run(x, w, n) ** 2).sum(), (0, 1))(x, w)

    for n in (0, 1, 5, KEPT + 1, 2 * KEPT + 22):
        np.testing.assert_allclose(run(X, W, n), by_hand(X, W, n, key), rtol=1e-12)
        expected = jax.grad(lambda x, w, n=n: (by_hand(x, w, n, key) ** 2).sum(), (0, 1))(X, W)
        assert_tree_close(found(X, W, n), expected, allow_zero=["0", "1"][: 0 if n else 2])


def test_every_example_may_have_a_count_of_its_own() -> None:
    run, key, counts = program(jax.random.key(0)), jax.random.key(0), (0, 3, KEPT + 6)
    xs = jnp.stack([X, 2 * X, -X])

    def of(f: Any) -> Any:
        return lambda x, n: jax.grad(lambda x: (f(x, n) ** 2).sum())(x)

    found = jax.vmap(of(lambda x, n: run(x, W, n)))(xs, jnp.array(counts))
    expected = [
        of(lambda x, n: by_hand(x, W, n, key))(x, n) for x, n in zip(xs, counts, strict=True)
    ]
    assert_tree_close(found, jnp.stack(expected))


def test_the_condition_may_read_what_moves() -> None:
    def loop(x: Any, bound: Any, rate: Any) -> Any:
        return jax.lax.while_loop(
            lambda c: (c[0] ** 2).sum() > bound, lambda c: (rate * c[0], c[1] + c[0]), (x, 0 * x)
        )

    jaxpr = versions.make_jaxpr(lambda *args: [*loop(*args)], X, ONE, ONE)
    run = versions.jaxpr_as_fun(with_reverse_mode(jaxpr))

    def expected(x: Any, bound: Any, rate: Any) -> Any:
        total = 0 * x
        while (x**2).sum() > bound:
            x, total = rate * x, total + x
        return x, total

    def of(f: Any) -> Any:
        return jax.grad(lambda *a: sum((v**3).sum() for v in f(*a)), (0, 1, 2))(
            X, 0.1 * ONE, ONE / 2
        )

    found, reference = of(run), of(expected)
    assert_tree_close(found, reference, allow_zero=["1"])
    assert not found[1].any() and found[2].any()


def test_loops_in_branches_calls_and_scans() -> None:
    def halved(x: Any, n: Any) -> Any:
        return jax.lax.fori_loop(0, n, lambda i, x: 0.5 * jnp.sin(x), x)

    def run(x: Any, n: Any) -> Any:
        def body(c: Any, row: Any) -> Any:
            c = jax.lax.switch(n % 3, [halved, lambda c, n: c, jax.jit(halved)], c, n)
            return c, c * row

        return jax.lax.scan(body, x[0], x, reverse=True)

    def expected(x: Any, n: int) -> Any:
        c, rows = x[0], []
        for row in x[::-1]:
            for _ in range(0 if n % 3 == 1 else n):
                c = 0.5 * jnp.sin(c)
            rows.insert(0, c * row)
        return c, jnp.stack(rows)

    def of(f: Any, n: int) -> Any:
        return jax.grad(lambda x: sum((v**2).sum() for v in f(x, n)))(X)

    jaxpr = versions.make_jaxpr(lambda x, n: [*run(x, n)], X, 1)
    found = versions.jaxpr_as_fun(with_reverse_mode(jaxpr))
    for n in (1, 2, 3):
        assert_tree_close(of(found, n), of(expected, n))


def test_a_program_without_such_loops_is_the_same() -> None:
    def run(x: Any) -> Any:
        return [x * jax.lax.while_loop(lambda n: n < 5, lambda n: n + 1, 0)]

    jaxpr = versions.make_jaxpr(run, X)
    assert with_reverse_mode(jaxpr) is jaxpr
    assert with_reverse_mode(versions.make_jaxpr(looped_floats, X), inputs=()).eqns


def looped_floats(x: Any) -> Any:
    return [jax.lax.while_loop(lambda v: v.sum() > 0.1, lambda v: 0.5 * v, x)]


def test_a_loop_alone() -> None:
    (eqn,) = versions.make_jaxpr(looped_floats, X).eqns
    run = reversible(eqn)
    np.testing.assert_allclose(jax.grad(lambda x: run(x)[0].sum())(np.ones((2, 3))), 1 / 64)
