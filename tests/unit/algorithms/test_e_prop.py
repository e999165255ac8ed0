# SPDX-License-Identifier: Apache-2.0
"""e-prop by blocks is e-prop by loops."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import EPropRule, ParamDimRule
from braintrace.compiler.module_info import CreditFilter
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import BATCH, block_of, by_loops, part, ready


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_filtered_traces_meet_the_signal(cut: int, old: bool) -> None:
    executor, operands = ready()
    rule, block = EPropRule(executor, kappa=0.6), block_of(executor, old=old)
    first, traces = [{"weight": 0.0}], None
    if cut:
        first, traces = rule.advance(rule.init(), part(block, 0, cut), operands)
    second, traces = rule.advance(traces, part(block, cut, None), operands)
    expected, eps, ebar = by_loops(block, kappa=0.6)
    np.testing.assert_allclose(first[0]["weight"] + second[0]["weight"], expected, rtol=1e-10)
    np.testing.assert_allclose(traces[0]["weight"], eps, rtol=1e-10)
    np.testing.assert_allclose(traces[1]["weight"], ebar, rtol=1e-10)
    held = rule.of_link(traces, 0)["weight"]
    np.testing.assert_allclose(held, np.moveaxis(ebar, 0, -1), rtol=1e-10)


def test_a_signal_at_the_start_of_a_window_meets_the_filtered_trace() -> None:
    executor, operands = ready()
    rule = EPropRule(executor, kappa=0.6)
    traces = rule.update(None, block_of(executor), operands)
    signal = np.ones((1, BATCH, zoo.HIDDEN))
    (found,) = rule.solve_at_start(traces, (signal,), operands)
    np.testing.assert_allclose(found["weight"], traces[1]["weight"].sum((0, 1)), rtol=1e-10)


class Readout(brainstate.nn.Module):
    """v <- 0.8 v + W x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = zoo.weight(zoo.HIDDEN, 2)

    def init_state(self, batch_size: int) -> None:
        self.v = brainstate.HiddenState(np.zeros((batch_size, 2)))

    def update(self, x: Any) -> Any:
        self.v.value = 0.8 * self.v.value + bt.matmul(x, self.w.value)
        return self.v.value


def test_kappa_takes_the_place_of_the_leak_of_a_readout() -> None:
    layers = brainstate.nn.Sequential(bt.nn.GRUCell(zoo.IN, zoo.HIDDEN), Readout())
    executor, _ = ready(layers, bt.EProp, kappa_filter_decay=0.6, downstream="linear")
    (group,) = executor.driven
    filtered = [isinstance(s, CreditFilter) for s in group.group.hidden_states]
    assert sorted(filtered) == [False, True]
    assert ParamDimRule(executor).name == "e-prop, kappa 0.6"
    params = {path: s.value for path, s in layers.states(brainstate.ParamState).items()}
    slots = executor.graph.module_info.slots
    states = {slot.path: slot.state.value for slot in slots} | params
    *_, values = executor.run([jnp.ones((BATCH, zoo.IN))], states)
    moving = np.asarray(executor.jacobians_at(values).composed(executor.links).transition[0])
    k = filtered.index(True)
    np.testing.assert_allclose(moving[k, k], 0.6, rtol=1e-12)


def test_without_a_filter_it_is_d_rtrl() -> None:
    executor, operands = ready()
    block, rules = block_of(executor), (EPropRule(executor), ParamDimRule(executor))
    assert_tree_close(*(rule.solve(None, block, operands) for rule in rules), 1e-12)
    assert (
        rules[0].name == "e-prop, kappa 0" and EPropRule(executor, kappa=0.25).name[-4:] == "0.25"
    )
