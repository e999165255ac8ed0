# SPDX-License-Identifier: Apache-2.0
"""How single primitives move positions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from braintrace.base.versions import jaxp
from braintrace.jaxprs.positions.of_primitives import ALONG, MOVES
from braintrace.jaxprs.run import nested

lax = jax.lax


def equation(fun: Any, *shapes: tuple[int, ...]) -> Any:
    return jax.make_jaxpr(fun)(*(jnp.ones(shape) for shape in shapes)).eqns[-1]


@pytest.mark.parametrize(
    ("fun", "shapes", "expected"),
    [
        (lambda a: lax.transpose(a, (1, 0)), [(2, 3)], [{(1, 0), (0, 1)}]),
        (lambda a: lax.broadcast_in_dim(a, (4, 2), (1,)), [(2,)], [{(0, 1)}]),
        (lambda a: lax.reduce_sum(a, (0,)), [(2, 3)], [{(1, 0)}]),
        (lambda a: lax.cumsum(a, 1), [(2, 3)], [{(0, 0)}]),
        (lambda a: lax.sort(a, dimension=0), [(2, 3)], [{(1, 1)}]),
        (lambda a: lax.pad(a, 0.0, [(0, 0, 0), (1, 0, 0)]), [(2, 3)], [{(0, 0)}, set()]),
        (
            lambda a, b: lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,)))),
            [(5, 2, 3), (5, 3, 4)],
            [{(0, 0), (1, 1)}, {(0, 0), (2, 2)}],
        ),
        (
            lambda a, b: lax.conv_general_dilated(a, b, (1,), "SAME"),
            [(5, 2, 7), (3, 2, 3)],
            [{(0, 0)}, set()],
        ),
    ],
)
def test_pairs_of_axes(fun: Any, shapes: Any, expected: list[set[tuple[int, int]]]) -> None:
    eqn = equation(fun, *shapes)
    rule = ALONG[eqn.primitive]
    assert [set(rule(eqn, k)) for k in range(len(eqn.invars))] == expected


def test_an_index_for_each_example() -> None:
    """As ``vmap`` makes them: each reads and writes its own part."""
    read = jax.vmap(lambda h, k: lax.dynamic_slice(h, (k, 0), (1, 2)))
    write = jax.vmap(lambda h, k, z: h.at[k].set(z))
    h, k, z = jnp.ones((3, 4, 2)), jnp.array([1, 0, 3]), jnp.ones((3, 2))
    for run, values, name, expected in (
        (read, (h, k), "gather", {0: {(0, 0), (2, 2)}}),
        (write, (h, k, z), "scatter", {0: {(0, 0), (1, 1), (2, 2)}, 2: {(0, 0), (1, 2)}}),
    ):
        eqns = jax.make_jaxpr(run)(*values).eqns
        inner = [e for eqn in eqns for e in (eqn, *nested(eqn))]
        eqn = next(e for e in inner if e.primitive.name == name)
        for operand, pairs in expected.items():
            assert set(ALONG[eqn.primitive](eqn, operand)) == pairs
            found = jnp.stack(jnp.nonzero(jax.jacobian(run, operand, allow_int=True)(*values)))
            outs = run(*values).ndim
            assert all((found[out] == found[outs + i]).all() for i, out in pairs)


def test_a_primitive_has_one_rule() -> None:
    assert not ALONG.keys() & MOVES.keys()
    assert jaxp.sin_p in ALONG and jaxp.reshape_p in MOVES
