# SPDX-License-Identifier: Apache-2.0
"""Both forms of a trace obey the recursion that defines it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.ops.operation import Operation
from braintrace.ops.traces import trace_rules
from braintrace.ops.traces.base import zeros_of
from braintrace.ops.traces.by_rules import StructuredTrace
from braintrace.ops.traces.dense import DenseTrace
from braintrace.testing import assert_tree_close

RNG = np.random.default_rng(0)
W = RNG.normal(size=(3, 2))
WRITTEN = {
    "yw_to_w": lambda dy, trace: {"weight": trace["weight"] * dy[..., None, :]},
    "init_drtrl": lambda x, y, weights, n: {
        "weight": jnp.zeros((*y.aval.shape[:-1], *weights["weight"].aval.shape, n), y.aval.dtype)
    },
}


def rules(kind: type, batch: tuple[int, ...], states: int, extra: tuple[int, ...]) -> Any:
    written = WRITTEN if kind is StructuredTrace else {}
    spec = bt.ETPPrimitiveSpec("unit_traced", jnp.matmul, batched=bool(batch), **written)
    shapes = (*batch, 3), (3, 2), (*batch, 2)
    x, w, y = (jax.ShapeDtypeStruct(shape, "float64") for shape in shapes)
    found = trace_rules(Operation(spec, {}, (x, w), y, ("weight",)), extra, states)
    assert type(found) is kind
    return found


def values(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape))


@pytest.mark.parametrize("extra", [(), (2,)])
@pytest.mark.parametrize("states", [1, 2, 5])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_both_forms_give_the_same_gradient(
    batch: tuple[int, ...], states: int, extra: tuple[int, ...]
) -> None:
    head = (*extra, *batch, 2)
    xs, f = values(3, *batch, 3), values(3, states, *head)
    transition, signal = values(states, states, *head), values(states, *head)
    operands, found = (None, W), []
    for kind in (DenseTrace, StructuredTrace):
        form = rules(kind, batch, states, extra)
        trace = form.increments(xs, f, operands)
        assert {k: (v.shape, v.dtype) for k, v in trace.items()} == {
            k: (v.shape, v.dtype) for k, v in form.types.items()
        }
        moved = form.propagate(transition, trace, operands)
        scaled = form.scaled(signal, moved, operands)
        found.append([form.solve(signal, t, operands) for t in (trace, moved, scaled)])
    assert_tree_close(found[0], found[1], 1e-12)
    driven = jnp.einsum("ij...,kj...->ki...", transition, f)
    products = (signal * driven).sum(1).reshape(3, -1, *batch, 2).sum(1)
    expected = jnp.einsum("k...i,k...o->io", xs, products)
    assert_tree_close(found[0][1], {"weight": expected}, 1e-12)


def test_another_number_of_states() -> None:
    form = rules(StructuredTrace, (), 1, ())
    assert form.of_states(3).types["weight"].shape == (3, 3, 2)
    assert form.types["weight"].shape == (1, 3, 2)
    assert not form.init()["weight"].any()


def test_zeros_are_made_by_a_program_that_is_compiled_once() -> None:
    make = zeros_of((2, 3), jnp.dtype("float32"))
    assert make is zeros_of((2, 3), jnp.dtype("float32"))
    found, again = make(), make()
    assert found.dtype == jnp.float32 and not found.any() and found.shape == (2, 3)
    assert found.unsafe_buffer_pointer() != again.unsafe_buffer_pointer()  # each may be given away
