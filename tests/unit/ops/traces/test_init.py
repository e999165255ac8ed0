# SPDX-License-Identifier: Apache-2.0
"""Which trace an operation gets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.ops.operation import Operation
from braintrace.ops.traces import output_trace, trace_rules
from braintrace.ops.traces.by_rules import StructuredTrace
from braintrace.ops.traces.dense import DenseTrace


def operation(dtype: str = "float32", **rules: Any) -> Operation:
    spec = bt.ETPPrimitiveSpec("unit_chosen", jnp.matmul, **rules)
    x, w, y = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((3,), (3, 2), (2,)))
    return Operation(spec, {}, (x, w), y, ("weight",))


def yw_to_w(dy: Any, trace: Any) -> Any:
    return {"weight": trace["weight"] * dy}


def init_drtrl(x: Any, y: Any, weights: Any, n: int) -> Any:
    return {"weight": jnp.zeros((3, 2, n))}


def test_a_trace_is_structured_only_where_both_rules_are_written() -> None:
    written = {"yw_to_w": yw_to_w, "init_drtrl": init_drtrl}
    assert type(trace_rules(operation(**written), (), 2)) is StructuredTrace
    assert type(trace_rules(operation(yw_to_w=yw_to_w), (), 2)) is DenseTrace
    assert type(trace_rules(operation(), (), 2)) is DenseTrace


def test_a_trace_of_the_output_is_like_y() -> None:
    assert output_trace(operation(), 4) == jax.ShapeDtypeStruct((2, 4), "float32")


def test_a_family_chooses_its_precision() -> None:
    op = operation("bfloat16", init_pp=lambda x, y, w, n: jnp.zeros((2, n), "float32"))
    assert output_trace(op, 4) == jax.ShapeDtypeStruct((2, 4), "float32")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, y, w, n: jnp.zeros((2, n + 1)),
        lambda x, y, w, n: jnp.zeros((2, n), int),
        lambda x, y, w, n: (jnp.zeros((2, n)),),
    ],
    ids=["shape", "dtype", "tuple"],
)
def test_another_trace_of_the_output_is_refused(wrong: Any) -> None:
    with pytest.raises(bt.CompilationError, match=r"init_pp of 'unit_chosen' gives .*\(2, 4\)"):
        output_trace(operation(init_pp=wrong), 4)
