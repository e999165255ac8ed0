# SPDX-License-Identifier: Apache-2.0
"""What is found about operations, one by one."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace as bt
from braintrace.compiler.findings.operations import operation_findings
from tests import zoo
from tests.zoo import HIDDEN, IN, weight


class Every(zoo.Leaky):
    """A relation, a product in front of it, a readout, and operations without a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.out, self.held = weight(IN, IN), weight(HIDDEN, 2), weight(HIDDEN, 2)

    def update(self, x: Any) -> Any:
        bias = jnp.ones(HIDDEN)
        drive = bt.matmul(bt.matmul(x, self.front.value), self.w.value, bias)
        self.h.value = 0.8 * self.h.value + drive
        y = bt.matmul(self.h.value, jnp.ones((HIDDEN, 2)))
        y = y + bt.matmul(self.h.value, jax.lax.stop_gradient(self.held.value))
        return y + bt.matmul(self.h.value, self.out.value)


def found_in(model: Any, **options: Any) -> list[Any]:
    brainstate.nn.init_all_states(model, batch_size=2)
    graph = bt.compile_etrace_graph(model, jnp.ones((2, IN)), **options)
    return [*operation_findings(graph)]


def test_every_operation_has_its_finding_in_the_order_of_the_program() -> None:
    found = found_in(Every(), frozen=["held"])
    assert [(r.kind.value, r.weight_path) for r in found] == [
        ("relation_excluded_weight_to_weight", ("front",)),
        ("relation_included", ("w",)),
        ("trainable_invar_not_paramstate", None),  # the bias
        ("relation_excluded_no_paramstate", None),
        ("relation_excluded_no_paramstate", ("held",)),
        ("relation_excluded_non_temporal", ("out",)),
    ]
    front, included, bias, bare, held, out = found
    assert "reaches a hidden state only through another ETP operation" in front.message
    assert included.hidden_paths == (("h",),)
    assert "the operand 'bias' of 'etp_mm' is not a parameter" in bias.message
    assert "has no trainable parameter, so nothing is traced" in bare.message
    assert "held is held: stop_gradient" in held.message
    assert (out.level.value, front.level.value) == ("warning", "info")


class OfTwoLeaves(zoo.Leaky):
    """The operand is the sum of two leaves of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState({k: weight(IN, HIDDEN).value for k in "ab"})

    def update(self, x: Any) -> Any:
        both = self.w.value["a"] + self.w.value["b"]
        self.h.value = 0.8 * self.h.value + bt.matmul(x, both)
        return self.h.value


def test_an_operand_of_several_leaves() -> None:
    kinds = [(r.kind.value, r.context.get("leaves")) for r in found_in(OfTwoLeaves())]
    assert ("pytree_weight_leaf_ambiguous", [0, 1]) in kinds


class Normalised(zoo.Leaky):
    """Positions are mixed between the operation and the state."""

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.8 * self.h.value + y - y.mean(-1, keepdims=True)
        return self.h.value


def test_a_tail_that_mixes_positions_makes_the_trace_larger() -> None:
    (found,) = [r for r in found_in(Normalised()) if r.kind.value == "tail_not_position_wise"]
    assert f"the trace is {HIDDEN} times as large" in found.message
    assert found.context["factor"] == HIDDEN and found.level.value == "warning"
