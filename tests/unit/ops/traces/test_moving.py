# SPDX-License-Identifier: Apache-2.0
"""The trace of the whole weight where a part of it is chosen at each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.ops.moving import ExamplesSpec, Made, MovingPrimitive, moving, pack
from braintrace.ops.operation import Operation
from braintrace.ops.primitive import find_primitive
from braintrace.ops.repeated import rows_of
from braintrace.ops.traces import trace_rules
from braintrace.ops.traces.moving import ExamplesTrace, MovingTrace
from braintrace.testing import assert_tree_close

RNG = np.random.default_rng(0)
K, N, B, S = 4, 3, 2, 2
CHOSEN = [0, 2, 2, 0]
X, W = RNG.normal(size=(K, B, 3)), RNG.normal(size=(N, 3, 2))
DY = RNG.normal(size=(K, B, 2))


def aval(*shape: int, dtype: Any = "float64") -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def rules(extra: tuple[int, ...]) -> tuple[Any, Any]:
    """Those of ``x @ w[i]`` with a bias that stays, and those of a product."""
    bt.matmul(jnp.ones(3), jnp.ones((3, 2)))  # loads the family
    one = find_primitive("etp_mm")
    assert one is not None
    made = Made(lambda w, i: jnp.asarray(w)[i], (0,), aval(3, 2), (N,))
    primitive = moving(one, {1: made}, [aval(B, 3), aval(dtype="int32")])
    params, y = {"has_bias": True}, aval(B, 2)

    def of(spec: Any, x: Any, w: Any) -> Any:
        operands = aval(*x), aval(*w), aval(2)
        operation = Operation(spec, params, operands, y, ("weight", "bias"))
        return trace_rules(operation, extra, S)

    return of(primitive.spec, (B * 3 + 1,), (N, 3, 2)), of(one.spec, (B, 3), (3, 2))


@pytest.mark.parametrize("extra", [(), (4,)])
def test_a_step_adds_to_the_chosen_part(extra: tuple[int, ...]) -> None:
    many, one = rules(extra)
    assert isinstance(many, MovingTrace)
    own = one.types["weight"].shape
    assert many.types["weight"].shape == (*own[:-2], N, *own[-2:])
    assert many.types["bias"] == one.types["bias"]
    assert many.of_states(1).types["weight"].shape[0] == 1
    packed = jnp.stack([pack([x, jnp.int32(i)]) for x, i in zip(X, CHOSEN, strict=True)])
    f = jnp.asarray(RNG.normal(size=(K, S, *extra, B, 2)))
    operands, held = [None, W, jnp.zeros(2)], [None, W[0], jnp.zeros(2)]
    found = many.increments(packed, f, operands)
    parts = [
        one.increments(jnp.asarray(X[chosen]), f[np.array(chosen)], held)
        for chosen in ([k for k, i in enumerate(CHOSEN) if i == n] for n in range(N))
        if chosen
    ]
    zeros = jax.tree.map(jnp.zeros_like, parts[0])
    rows = [parts[0], zeros, parts[1]]
    expected = {"weight": jnp.stack([row["weight"] for row in rows], -3)}
    expected["bias"] = parts[0]["bias"] + parts[1]["bias"]
    assert_tree_close(found, expected)

    signal = jnp.asarray(RNG.normal(size=(S, *extra, B, 2)))
    solved = [one.solve(signal, row, held) for row in rows]
    met = {"weight": jnp.stack([row["weight"] for row in solved])}
    met["bias"] = one.solve(signal, found | {"weight": zeros["weight"]}, held)["bias"]
    assert_tree_close(many.solve(signal, found, operands), met)
    moved = many.propagate(jnp.stack([signal, 2 * signal]), found, operands)
    again = [one.propagate(jnp.stack([signal, 2 * signal]), row, held) for row in rows]
    weights = jnp.stack([row["weight"] for row in again], -3)
    assert_tree_close({"weight": moved["weight"]}, {"weight": weights})


def test_the_product_of_all_steps() -> None:
    many, _ = rules(())
    packed = jnp.stack([pack([x, jnp.int32(i)]) for x, i in zip(X, CHOSEN, strict=True)])
    expected = np.zeros_like(W)
    for x, i, dy in zip(X, CHOSEN, DY, strict=True):
        expected[i] += x.T @ dy
    found = many.operation.contract(packed, jnp.asarray(DY), [None, W, jnp.zeros(2)])
    assert_tree_close(found, {"weight": expected, "bias": DY.sum((0, 1))})


def test_examples_by_themselves() -> None:
    many, _ = rules(())
    alone = many.operation
    spec = rows_of(MovingPrimitive(alone.spec, "unit"), ExamplesSpec, "examples")
    rows = [jax.ShapeDtypeStruct((5, *a.shape), a.dtype) for a in (alone.x_aval, alone.y_aval)]
    operands = rows[0], *alone.operand_avals[1:]
    batch = trace_rules(replace(alone, spec=spec, operand_avals=operands, y_aval=rows[1]), (), S)
    assert isinstance(batch, ExamplesTrace)
    packed = [
        jnp.stack([pack([x, jnp.int32(i)]) for x, i in zip(X + b, CHOSEN, strict=True)])
        for b in range(5)
    ]
    f, held = jnp.asarray(RNG.normal(size=(K, S, 5, B, 2))), [None, W, jnp.zeros(2)]
    found = batch.increments(jnp.stack(packed, 1), f, held)
    each = [many.increments(packed[b], f[:, :, b], held) for b in range(5)]
    assert_tree_close(found, jax.tree.map(lambda *v: jnp.stack(v, 1), *each))
    assert jax.tree.map(jnp.shape, found) == {k: v.shape for k, v in batch.types.items()}
    assert batch.of_states(1).types["bias"].shape[:2] == (1, 5)
    signal = jnp.asarray(RNG.normal(size=(S, 5, B, 2)))
    solved = [many.solve(signal[:, b], each[b], held) for b in range(5)]
    total = jax.tree.map(lambda *v: sum(v), *solved)
    assert_tree_close(batch.solve(signal, found, held), total)
    moved = batch.propagate(jnp.stack([signal, signal]), found, held)
    again = [
        many.propagate(jnp.stack([signal[:, b], signal[:, b]]), each[b], held) for b in range(5)
    ]
    assert_tree_close(moved, jax.tree.map(lambda *v: jnp.stack(v, 1), *again))
