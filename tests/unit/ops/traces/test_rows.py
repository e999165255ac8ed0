# SPDX-License-Identifier: Apache-2.0
"""The trace of rows: that of the whole table, as long as there is room for what was read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.ops.operation import Operation
from braintrace.ops.spec import ETPPrimitiveSpec, Rows
from braintrace.ops.traces import trace_rules
from braintrace.ops.traces.dense import DenseTrace
from braintrace.ops.traces.rows import RowsTrace
from braintrace.testing import assert_tree_close

V, W, B, S, R = 6, 2, 3, 2, 4


def rules(batched: bool, forget: bool, extra: tuple[int, ...] = ()) -> Any:
    """The rules of ``weight[x]``."""
    head = (B,) if batched else ()
    spec = ETPPrimitiveSpec(
        "unit_rows",
        lambda x, w: w[x],
        lambda dy, trace: {"weight": trace["weight"] * dy[..., None, :]},
        init_drtrl=lambda x, y, w, s: {"weight": jnp.zeros((*x.aval.shape, R, W, s))},
        batched=batched,
        rows_drtrl=lambda x: Rows(x, forget),
    )
    avals = jax.ShapeDtypeStruct(head, "int32"), jax.ShapeDtypeStruct((V, W), "float64")
    y = jax.ShapeDtypeStruct((*head, W), "float64")
    return trace_rules(Operation(spec, {}, avals, y, ("weight",), least="float64"), extra, S)


def run(of: Any, rows: Any, steps: int, forgotten: Any = None) -> tuple[Any, Any]:
    """A trace after blocks of ``steps`` steps, and the table that a loop over steps keeps."""
    rng, head = np.random.default_rng(0), rows.shape[1:]
    f = rng.normal(size=(len(rows), S, *head, W))
    d = rng.normal(size=(len(rows), S, S, *head, W))
    operands, trace = [None, jnp.zeros((V, W))], None
    table = np.zeros((S, *head, V, W))
    for start in range(0, len(rows), steps):
        block = slice(start, start + steps)
        product = np.broadcast_to(np.eye(S)[..., *(None,) * (1 + len(head))], d[0].shape)
        driven = []
        for k in reversed(range(*block.indices(len(rows)))):
            driven.insert(0, np.einsum("ij...,j...->i...", product, f[k]))
            product = np.einsum("ij...,jk...->ik...", product, d[k])
        kept = None if trace is None else of.propagate(jnp.asarray(product), trace, operands)
        new = of.increments(jnp.asarray(rows[block]), jnp.asarray(np.array(driven)), operands)
        trace = of.joined(kept, new)
    for k, row in enumerate(rows):
        table = np.einsum("ij...w,j...vw->i...vw", d[k], table)
        for at in np.ndindex(*head):
            table[:, *at, row[at]] += f[k][:, *at]
            if forgotten is not None and forgotten[k] is not None:
                table[:, *at, forgotten[k]] = 0
    return trace, table


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_within_its_rows_it_is_exact(batched: bool, steps: int) -> None:
    of = rules(batched, forget=False)
    assert isinstance(of, RowsTrace)
    rows = np.random.default_rng(1).integers(0, R, size=(7, *((B,) if batched else ()))) + 1
    trace, table = run(of, rows, steps)
    assert jax.tree.map(lambda v: (v.shape, v.dtype), trace) == jax.tree.map(
        lambda v: (v.shape, v.dtype), of.types
    )
    signal = np.random.default_rng(2).normal(size=(S, *table.shape[1:-2], W))
    expected = np.einsum("s...w,s...vw->...vw", signal, table).reshape(-1, V, W).sum(0)
    found = of.solve(jnp.asarray(signal), trace, [None, jnp.zeros((V, W))])
    assert_tree_close(found, {"weight": expected})
    zero = of.solve(jnp.asarray(signal), of.init(), [None, jnp.zeros((V, W))])
    assert not jnp.any(zero["weight"])


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_row_read_longest_ago_is_forgotten_or_nothing_is_a_number(steps: int) -> None:
    rows = np.array([0, 1, 2, 3, 0, 4, 1, 5])  # 4 takes the place of 1, 1 that of 2, 5 that of 3
    of = rules(batched=False, forget=True)
    trace, table = run(of, rows, steps, [*(None,) * 5, 1, 2, 3])
    assert sorted(trace["rows"][0].tolist()) == [1, 2, 5, 6] and trace["lost"].tolist() == [3, 3]
    signal = jnp.ones((S, W))
    found = of.solve(signal, trace, [None, jnp.zeros((V, W))])
    assert_tree_close(found, {"weight": table.sum(0)})
    trace, _ = run(rules(batched=False, forget=False), rows, steps)
    assert jnp.isnan(trace["weight"]).all()


def test_rows_from_the_end_are_those_that_are_read() -> None:
    of = rules(batched=False, forget=False)
    found, _ = run(of, np.array([-1, 2, -1]), 2)
    assert found["rows"][0].tolist() == [V, 3, 0, 0]
    expected, _ = run(of, np.array([V - 1, 2, V - 1]), 2)
    assert_tree_close(found, expected, allow_zero=("lost",))


def test_along_further_axes_of_the_state_it_is_dense() -> None:
    assert isinstance(rules(batched=False, forget=False, extra=(2,)), DenseTrace)
