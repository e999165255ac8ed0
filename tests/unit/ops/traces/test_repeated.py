# SPDX-License-Identifier: Apache-2.0
"""The trace of a repeated operation: the iterations of a step are like steps of a block."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.ops.operation import Operation
from braintrace.ops.primitive import find_primitive, kept_registry
from braintrace.ops.repeated import repeated
from braintrace.ops.traces import trace_rules
from braintrace.ops.traces.repeated import RepeatedTrace
from braintrace.testing import assert_tree_close

RNG = np.random.default_rng(0)
K, N, B, S = 4, 5, 2, 2


def both(one: Any, extra: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """The rules of a repeated operation [N, B, 3] -> [N, B, 2], and of what it repeats."""

    def rules(primitive: Any, head: tuple[int, ...]) -> Any:
        shapes = (*head, B, 3), (3, 2), (*head, B, 2)
        x, w, y = (jax.ShapeDtypeStruct(shape, "float64") for shape in shapes)
        params = {"has_bias": False}
        return trace_rules(Operation(primitive.spec, params, (x, w), y, ("weight",)), extra, S)

    return rules(repeated(one), (N,)), rules(one, ())


@pytest.mark.parametrize("extra", [(), (3,)])
@pytest.mark.parametrize("written", [True, False])
def test_the_rules_are_those_of_one(written: bool, extra: tuple[int, ...]) -> None:
    bt.matmul(jnp.ones(3), jnp.ones((3, 2)))  # loads the family
    with kept_registry():
        one = find_primitive("etp_mm") if written else None
        one = one or bt.register_primitive(
            "unit_repeated_trace", lambda x, w, has_bias: x @ w, batched=True
        )
        many, single = both(one, extra)
        assert isinstance(many, RepeatedTrace) and not isinstance(single, RepeatedTrace)
        assert many.types == single.types
        assert many.of_states(1).types == single.of_states(1).types
        x, f = RNG.normal(size=(K, N, B, 3)), RNG.normal(size=(K, S, *extra, N, B, 2))
        weight = RNG.normal(size=(3, 2))
        operands = [None, weight]
        found = many.increments(jnp.asarray(x), jnp.asarray(f), operands)
        rows = [
            single.increments(jnp.asarray(x[:, n]), jnp.asarray(np.take(f, n, -3)), operands)
            for n in range(N)
        ]
        assert_tree_close(found, jax.tree.map(lambda *v: sum(v), *rows))
        signal = jnp.asarray(RNG.normal(size=(S, *extra, 1, B, 2)))
        whole = jnp.broadcast_to(signal, (S, *extra, N, B, 2))
        own = signal[..., 0, :, :]
        assert_tree_close(many.solve(whole, found, operands), single.solve(own, found, operands))
        transition = jnp.stack([whole, 2.0 * whole])
        moved = many.propagate(transition, found, operands)
        assert_tree_close(moved, single.propagate(jnp.stack([own, 2.0 * own]), found, operands))
        scaled = many.scaled(whole, found, operands)
        assert_tree_close(scaled, single.scaled(own, found, operands))
        operation = many.operation
        dy = jnp.asarray(RNG.normal(size=(K, N, B, 2)))
        expected = {"weight": jnp.einsum("knbi,knbo->io", x, dy)}
        assert_tree_close(operation.contract(jnp.asarray(x), dy, operands), expected)
        assert_tree_close(
            operation.xy_to_dw(x[0], dy[0], operands),
            {"weight": jnp.einsum("nbi,nbo->io", x[0], dy[0])},
        )
