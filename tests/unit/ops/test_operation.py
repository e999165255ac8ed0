# SPDX-License-Identifier: Apache-2.0
"""What an algorithm asks of an operation, from written rules and derived."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.ops.operation import Operation
from braintrace.testing import assert_tree_close

X, W, SHIFT = (np.random.default_rng(0).normal(size=s) for s in ((3,), (3, 2), (2,)))


def dense(x: Any, w: Any, shift: Any) -> Any:
    return jnp.tanh(x @ w) + shift


def operation(batched: bool = False, **rules: Any) -> Operation:
    spec = bt.ETPPrimitiveSpec("unit_op", dense, batched=batched, **rules)
    x = jnp.ones((4, 3)) if batched else X
    types = [jax.typeof(v) for v in (x, W, SHIFT)]
    y = jax.typeof(dense(x, W, SHIFT))
    return Operation(spec, {}, tuple(types), y, ("weight",))


OPERANDS = (None, W, SHIFT)


@pytest.mark.parametrize("batched, several", [(False, False), (True, False), (True, True)])
def test_steps_are_added_up(batched: bool, several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "several_devices", lambda: several)
    op = operation(batched)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(5, *op.operand_avals[0].shape)))
    dys = jnp.asarray(rng.normal(size=(5, *op.y_aval.shape)))
    found = op.contract(xs, dys, OPERANDS)
    terms = [op.xy_to_dw(x, dy, OPERANDS)["weight"] for x, dy in zip(xs, dys, strict=True)]
    assert_tree_close(found, {"weight": sum(terms)}, 1e-12)


@pytest.mark.parametrize("batched, parts", [(True, 2), (True, 3), (False, 2)])
def test_sums_of_parts_of_the_examples(batched: bool, parts: int) -> None:
    """Where the examples can be divided so; the whole else."""
    op = replace(operation(batched), y_aval=jax.ShapeDtypeStruct((4, 2)[not batched :], "float64"))
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(5, *op.operand_avals[0].shape)))
    dys = jnp.asarray(rng.normal(size=(5, *op.y_aval.shape)))
    found = op.contract(xs, dys, OPERANDS, parts)["weight"]
    whole = op.contract(xs, dys, OPERANDS)["weight"]
    if not batched or 4 % parts:
        assert_tree_close(found, whole, 0.0)
        return
    each = zip(np.split(xs, parts, 1), np.split(dys, parts, 1), strict=True)
    own = jnp.stack([op.contract(*pair, OPERANDS)["weight"] for pair in each])
    assert_tree_close(found, own, 1e-12)
    assert_tree_close(found.sum(0), whole, 1e-12)


def test_a_rule_gets_the_constants_that_it_declares() -> None:
    def rule(x: Any, dy: Any, weights: Any, *, constants: Any) -> Any:
        return {"weight": constants[0]}

    op = operation(xy_to_dw=rule)
    assert op.xy_to_dw(X, SHIFT, OPERANDS)["weight"] is SHIFT
    with pytest.raises(TypeError, match="the rule 'yw_to_w' of 'unit_op' is derived, not written"):
        op.written("yw_to_w", OPERANDS)


def test_an_initial_rule_gets_what_it_declares() -> None:
    def plain(x: Any, y: Any, weights: Any, num_state: int) -> Any:
        return (x.aval.shape, y.aval.shape, weights["weight"].aval.shape, num_state)

    def asking(x: Any, y: Any, weights: Any, num_state: int, *, group: Any, eqn_params: Any) -> Any:
        return group, eqn_params

    op = operation(init_drtrl=plain, init_pp=asking)
    assert op.initial("init_drtrl", 2) == ((3,), (2,), (3, 2), 2)
    assert op.initial("init_pp", 2) == (None, {})


def test_an_initial_rule_is_asked_once_for_operations_that_look_the_same() -> None:
    asked = []

    def plain(x: Any, y: Any, weights: Any, num_state: int, **params: Any) -> Any:
        asked.append(num_state)
        return {"weight": jnp.zeros((*weights["weight"].aval.shape, num_state))}

    def of_group(x: Any, y: Any, weights: Any, num_state: int, *, group: Any) -> Any:
        asked.append(group)
        return jnp.zeros(num_state)

    op = operation(init_drtrl=plain, init_pp=of_group)
    same, unhashable = replace(op, group=object()), replace(op, params={"k": np.ones(1)})
    other = [replace(op, params={"k": k}) for k in (1, True, 1.0)]
    for one in (op, same, *other, unhashable, unhashable):
        assert one.initial_types("init_drtrl", 2)["weight"].shape == (3, 2, 2)
    assert op.initial_types("init_drtrl", 1)["weight"].shape == (3, 2, 1)
    assert asked == [2] * 6 + [1]
    for one in (op, same, op):
        one.initial_types("init_pp", 2)
    assert asked[7:] == [None, same.group, None]
