# SPDX-License-Identifier: Apache-2.0
"""What every learning rule is."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.algorithms import Block, ParamDimRule
from braintrace.algorithms.base import accept_old_name, add, check_jacobians
from braintrace.ops.traces.base import together
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import block_of, ready


def test_old_names_of_a_block() -> None:
    block = Block((), (1.0,), (2.0,))
    with pytest.warns(DeprecationWarning, match="Block.late is called old_signal now"):
        assert block.late == (2.0,)
    with pytest.warns(DeprecationWarning, match="Block.late is called old_signal now"):
        assert block._replace(late=(3.0,)) == Block((), (1.0,), (3.0,))
    assert block._replace(signal=()).old_signal == (2.0,) and block.given is None


class New:
    """Has a method by its new name."""

    def fresh(self) -> str:
        return "new"


def test_callers_may_use_the_old_name_of_a_method() -> None:
    class Own(New):
        """Inherits it."""

    accept_old_name(Own, "stale", "fresh")
    with pytest.warns(DeprecationWarning, match="Own.stale is called fresh now"):
        assert Own().stale() == "new"  # type: ignore[attr-defined]


def test_classes_may_define_a_method_by_its_old_name() -> None:
    class Old(New):
        def stale(self) -> str:
            return "old"

    with pytest.warns(DeprecationWarning, match="Old.stale is called fresh now"):
        accept_old_name(Old, "stale", "fresh")
    assert Old().fresh() == "old"


def test_sums_of_dicts_of_arrays() -> None:
    one = {"a": jnp.ones(2)}
    assert add(one, {}) is one and add({}, one) is one and add({}, {}) == {}
    assert add(one, one)["a"].tolist() == [2.0, 2.0]


def test_a_rule_needs_the_jacobians_of_its_executor() -> None:
    executor, _ = ready()

    class Whole(ParamDimRule):
        jacobians = "whole"

    text = r"Whole needs whole Jacobians \(every entry within a hidden group\), and the executor "
    with pytest.raises(ValueError, match=text + "gives near ones"):
        Whole(executor)
    check_jacobians(ParamDimRule(executor))


def test_cotangents_per_relation_are_in_the_dtypes_of_the_weights() -> None:
    executor, operands = ready()
    rule = ParamDimRule(executor)
    (found,) = rule.summed([{"weight": jnp.ones((zoo.IN, zoo.HIDDEN), "float32")}], operands)
    assert found["weight"].dtype == "float64"
    (none,) = rule.summed([{}], operands)
    assert none["weight"].shape == (zoo.IN, zoo.HIDDEN) and not none["weight"].any()


class TwoGroups(zoo.Model):
    """One operation drives two groups of different positions."""

    def __init__(self) -> None:
        super().__init__()
        self.w = zoo.weight(zoo.IN, zoo.HIDDEN)

    names = ("a", "b")

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.a.value = 0.5 * self.a.value + y
        self.b.value = 0.5 * self.b.value + 2 * y
        return self.a.value + self.b.value


def test_what_a_rule_inherits() -> None:
    executor, operands = ready(TwoGroups())
    rule, block = ParamDimRule(executor), block_of(executor)
    assert len(rule.links) == 2 and len({link.relation.index for link in rule.links}) == 1
    (found,) = rule.solve(None, block, operands)  # both links in one relation
    halves = [
        rule.solve(None, block._replace(signal=signal, old_signal=old), operands)[0]["weight"]
        for k in (0, 1)
        for signal, old in [
            tuple(tuple(s if i == k else 0 * s for i, s in enumerate(of)) for of in block[1:3])
        ]
    ]
    assert jnp.allclose(found["weight"], halves[0] + halves[1], rtol=1e-12)
    assert rule.bytes_per_step == 0 and rule.held_by(rule.init(), 0).keys() == {"weight"}


def test_parts_of_the_examples_are_added_up_in_the_end() -> None:
    """Of rules that say so themselves; what others make of a sum is their own."""

    class Own(ParamDimRule):
        """Looks at sums."""

    parts, whole = jnp.ones((2, 3)), jnp.full(3, 5.0)
    assert add({"w": parts}, {"w": whole})["w"].tolist() == [7.0] * 3
    assert add({"w": parts}, {"w": parts})["w"].shape == (2, 3)
    executor, operands = ready()
    whole_rule, block = ParamDimRule(executor), block_of(executor)
    traces = whole_rule.update(None, block_of(executor, seed=1), operands)
    expected = whole_rule.solve(traces, block, operands)
    executor.divide((2, None))
    assert (ParamDimRule(executor).parts, Own(executor).parts) == (2, 1)
    for rule in (ParamDimRule(executor), Own(executor)):
        found = rule.solve(traces, block, operands)[0]["weight"]
        assert found.ndim == 2 + (type(rule) is ParamDimRule)
        assert_tree_close(together(found, 2), expected[0]["weight"], 1e-12)
