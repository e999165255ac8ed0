# SPDX-License-Identifier: Apache-2.0
"""Traces that lag behind by a step give the same gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import Block, ParamDimRule
from braintrace.algorithms.lagged import LaggedDRTRLRule, may_lag, remembered
from braintrace.base import versions
from tests.unit.algorithms.blocks import BATCH, IN, block_of, part, ready


def steps_of_model(executor: Any, model: Any, steps: int) -> Block:
    """The Jacobians of some steps of a model, and random signals."""
    rng, found = np.random.default_rng(0), []
    for _ in range(steps):
        states = {slot.path: slot.state.value for slot in executor.graph.module_info.slots}
        _, new, values = executor.run([rng.normal(size=(BATCH, IN))], states)
        found.append(executor.jacobians_at(values))
        for slot in executor.graph.module_info.slots:
            slot.state.value = new[slot.path]
    jacobians = jax.tree.map(lambda *v: jnp.stack(v), *found)
    return block_of(executor, steps)._replace(jacobians=jacobians)


@pytest.mark.parametrize("cut", [1, 2])
def test_traces_that_lag_behind_give_the_same_gradients(cut: int) -> None:
    model = bt.nn.LSTMCell(IN, 3)
    executor, operands = ready(model)
    assert may_lag(executor)
    assert len(remembered(executor, 0)) == 1 < executor.groups[0].num_state  # c, and not h
    plain, lagged = ParamDimRule(executor, of_model=True), LaggedDRTRLRule(executor)
    block = steps_of_model(executor, model, 4)
    found = []
    for rule in (plain, lagged):
        first, traces = rule.advance(rule.init(), part(block, 0, cut), operands)
        second, traces = rule.advance(traces, part(block, cut, None), operands)
        links = [rule.of_link(traces, link.index) for link in rule.links]
        signal = tuple(s[0] for s in block.signal)
        at_start = rule.solve_at_start(traces, signal, operands)
        found.append((first, second, links, at_start))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    held = [jax.tree.leaves(rule.held_by(rule.init(), 0))[0].size for rule in (plain, lagged)]
    assert held[1] < held[0]


def test_traces_of_states_that_are_all_read_do_not_lag() -> None:
    executor, _ = ready()
    assert remembered(executor, 0) == (0,) and not may_lag(executor)


def equations(jaxpr: Any) -> list[Any]:
    inner = (e for eqn in jaxpr.eqns for e in versions.inner_jaxprs(eqn))
    return [*jaxpr.eqns, *(eqn for e in inner for eqn in equations(e))]


def test_a_block_moves_a_kept_trace_once() -> None:
    model = bt.nn.LSTMCell(IN, 3)
    executor, operands = ready(model)
    rule, block = LaggedDRTRLRule(executor), steps_of_model(executor, model, 4)
    weights = [trace["weight"].shape for trace in rule.init()[:-1] if trace]

    def products(steps: Block) -> int:
        """How many products have the shape of the weights' kept traces."""
        program = jax.make_jaxpr(rule.update)(rule.init(), steps, operands)
        whole = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "mul"]
        return sum(eqn.outvars[0].aval.size == np.prod(weights[0]) for eqn in whole)

    assert len(set(weights)) == 1 and len(weights) == 3
    assert products(block) == len(weights)
