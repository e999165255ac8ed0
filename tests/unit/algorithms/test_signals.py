# SPDX-License-Identifier: Apache-2.0
"""Signals that take the place of the gradient of the loss."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.algorithms import Block, IODimRule, ParamDimRule, Resignalled, SignalSource
from braintrace.algorithms.signals import Modulated, RandomFeedback, TracelessRule
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import BATCH, STEPS, block_of, ready


class Doubled(SignalSource):
    """Signals twice as large."""

    def replaced(self, block: Block) -> Block:
        old = tuple(None if s is None else 2 * s for s in block.old_signal)
        return block._replace(signal=tuple(2 * s for s in block.signal), old_signal=old)

    def at_start(self, signal: Any) -> Any:
        return tuple(None if s is None else 2 * s for s in signal)


@pytest.mark.parametrize("kind", [ParamDimRule, lambda e: IODimRule(e, 0.5, 0.5)])
def test_a_rule_meets_other_signals_and_is_itself_else(kind: Any) -> None:
    executor, operands = ready()
    rule, block = kind(executor), block_of(executor)
    other = Resignalled(rule, Doubled())
    (found,), traces = other.advance(None, block, operands)
    (plain,), same = rule.advance(None, block, operands)
    assert_tree_close(found, {"weight": 2 * plain["weight"]}, 1e-12)
    assert_tree_close(traces, same, 1e-12)
    assert_tree_close(other.solve(None, block, operands), [found], 1e-12)
    assert_tree_close(other.update(None, block, operands), same, 1e-12)
    assert_tree_close(other.of_link(traces, 0), rule.of_link(same, 0), 1e-12)
    signal = (np.ones((1, BATCH, zoo.HIDDEN)),)
    (start,) = other.solve_at_start(traces, signal, operands)
    (own,) = rule.solve_at_start(traces, signal, operands)
    assert_tree_close(start, {"weight": 2 * own["weight"]}, 1e-12)
    assert other.executor is executor and other.name == f"{rule.name}, Doubled"
    assert other.bytes_per_step == rule.bytes_per_step


def test_a_block_without_signals_is_left_as_it_is() -> None:
    executor, operands = ready()
    other = Resignalled(ParamDimRule(executor), Modulated(executor))
    jacobians = block_of(executor).jacobians
    other.update(None, Block(jacobians, (), ()), operands)  # would ask for a modulator


def test_random_feedback_passes_a_fixed_matrix() -> None:
    executor, _ = ready()
    source, block = RandomFeedback(executor, 3), block_of(executor)
    (matrix,) = source.matrices
    assert (matrix.shape, matrix.dtype) == ((zoo.HIDDEN, zoo.HIDDEN), "float32")
    found = source.replaced(block)
    np.testing.assert_allclose(found.signal[0], block.signal[0] @ matrix, rtol=1e-10)
    np.testing.assert_allclose(found.old_signal[0], block.old_signal[0] @ matrix, rtol=1e-10)
    assert source.at_start((None,)) == (None,)
    assert jnp.array_equal(RandomFeedback(executor, 3).matrices[0], matrix)
    given = block._replace(given=jnp.ones(1))
    assert source.replaced(given) is given  # an error has been fed back already


def test_a_modulator_takes_the_place_of_the_signal() -> None:
    executor, _ = ready()
    source, block = Modulated(executor), block_of(executor)
    whole, steps = np.random.default_rng(0).normal(size=(STEPS, BATCH, zoo.HIDDEN)), np.arange(4.0)
    found = source.replaced(block._replace(given=(jnp.asarray(whole),)))
    assert jnp.array_equal(found.signal[0], whole[:, None]) and found.old_signal == (None,)
    found = source.replaced(block._replace(given=(jnp.asarray(steps),)))
    assert found.signal[0].shape == block.signal[0].shape
    assert jnp.array_equal(found.signal[0][:, 0, 0, 0], steps)
    with pytest.raises(ValueError, match="the rule needs a modulator, and this learner passes no"):
        source.replaced(block)
    with pytest.raises(NotImplementedError, match="a modulated rule has no windows"):
        source.at_start((None,))


def test_a_rule_without_traces() -> None:
    executor, operands = ready()
    rule = TracelessRule(executor)
    assert rule.init() == rule.update((), block_of(executor), operands) == ()
    assert rule.of_link((), 0) == {}
    (found,) = rule.solve_at_start((), (None,), operands)
    assert found["weight"].shape == (zoo.IN, zoo.HIDDEN) and not found["weight"].any()
    with pytest.raises(NotImplementedError, match="learns in windows"):
        rule.solve((), block_of(executor), operands)


def test_a_source_by_the_old_name_of_its_method() -> None:
    with pytest.warns(DeprecationWarning, match="Old.at_boundary is called at_start now"):

        class Old(SignalSource):
            def replaced(self, block: Block) -> Block:
                return block

            def at_boundary(self, signal: Any) -> Any:
                return signal

    assert Old().at_start((1.0,)) == (1.0,)
