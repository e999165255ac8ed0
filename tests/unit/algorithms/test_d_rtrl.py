# SPDX-License-Identifier: Apache-2.0
"""D-RTRL by blocks is D-RTRL by loops."""

from __future__ import annotations

import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import ParamDimRule
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import BATCH, IN, block_of, by_loops, part, ready


@pytest.mark.parametrize(("cuts", "old"), [((), True), ((1,), False), ((1, 3), True)])
def test_blocks_of_any_length_are_loops(cuts: tuple[int, ...], old: bool) -> None:
    executor, operands = ready()
    rule, block = ParamDimRule(executor), block_of(executor, old=old)
    total, traces = 0.0, rule.init()
    for start, stop in zip((0, *cuts), (*cuts, None), strict=True):
        now = part(block, start, stop)
        (found,), new = rule.advance(traces, now, operands)
        assert_tree_close(rule.update(traces, now, operands), new, 1e-12)
        total, traces = total + found["weight"], new
    expected, eps, _ = by_loops(block)
    np.testing.assert_allclose(total, expected, rtol=1e-10)
    np.testing.assert_allclose(traces[0]["weight"], eps, rtol=1e-10)
    held = rule.of_link(traces, 0)["weight"]
    np.testing.assert_allclose(held, np.moveaxis(eps, 0, -1), rtol=1e-10)


def test_no_traces_are_traces_of_zeros() -> None:
    executor, operands = ready()
    rule, block = ParamDimRule(executor), block_of(executor)
    assert_tree_close(rule.solve(None, block, operands), rule.solve(rule.init(), block, operands))
    assert_tree_close(rule.update(None, block, operands), rule.update(rule.init(), block, operands))


def test_a_signal_at_the_start_of_a_window_meets_the_trace() -> None:
    executor, operands = ready()
    rule = ParamDimRule(executor)
    traces = rule.update(None, block_of(executor), operands)
    signal = np.random.default_rng(1).normal(size=(1, BATCH, zoo.HIDDEN))
    (found,) = rule.solve_at_start(traces, (signal,), operands)
    expected = np.einsum("sbo,sbio->io", signal, traces[0]["weight"])
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-10)
    (none,) = rule.solve_at_start(traces, (None,), operands)
    assert none["weight"].shape == (IN, zoo.HIDDEN) and not none["weight"].any()


def test_a_single_step_is_solved_from_the_trace_after_it() -> None:
    executor, operands = ready()
    rule = ParamDimRule(executor, of_model=True)
    traces = rule.update(None, block_of(executor, seed=1), operands)
    one = block_of(executor, 1)
    new = rule.update(traces, one, operands)
    assert rule.reads_new(one) and not rule.reads_new(block_of(executor, 2))
    assert not ParamDimRule(executor).reads_new(one)
    assert not ParamDimRule(executor, "bfloat16", of_model=True).reads_new(one)
    found = rule.solve_after(traces, new, one, operands)
    assert_tree_close(found, rule.solve(traces, one, operands), 1e-12)


def test_the_dtype_of_traces() -> None:
    executor, operands = ready()
    rule = ParamDimRule(executor, "bfloat16")
    assert rule.init()[0]["weight"].dtype == "bfloat16"
    assert rule.update(None, block_of(executor), operands)[0]["weight"].dtype == "bfloat16"
    assert rule.solve(rule.init(), block_of(executor), operands)[0]["weight"].dtype == "float64"


def test_names_in_reports_and_in_files() -> None:
    executor, _ = ready()
    assert ParamDimRule(executor).name == "D-RTRL, diagonal recurrence"
    assert ParamDimRule(executor, of_model=True).saved_as == "DRTRLRule"
    assert ParamDimRule(executor).saved_as == "ParamDimRule"
    assert ParamDimRule(ready(algorithm=bt.RTRL, downstream="step")[0]).name == "RTRL within groups"


def test_parts_of_a_rule_that_nothing_calls_are_refused() -> None:
    with pytest.raises(TypeError, match="defines passing, which nothing calls: of_block changes"):

        class Own(ParamDimRule):
            def passing(self) -> None: ...
