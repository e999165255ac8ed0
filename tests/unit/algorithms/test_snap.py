# SPDX-License-Identifier: Apache-2.0
"""SnAp-n by blocks is what its definition says, with a trace that is cut off."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import ParamDimRule, SnApRule
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import HIDDEN, IN, Recurrent, block_of, by_loops, part, ready

#: Which unit reads which: a ring, so that two steps reach one unit further.
RING = np.eye(HIDDEN) + np.roll(np.eye(HIDDEN), 1, 1)


class Ring(Recurrent):
    """A recurrent layer whose units read themselves and a neighbour."""

    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(bt.matmul(x, self.w.value) + self.h.value @ (RING * self.r.value))
        return self.h.value

    def __init__(self) -> None:
        super().__init__()
        self.w = zoo.weight(IN, HIDDEN)
        self.r = brainstate.ParamState(jnp.asarray(RING))


def kept(order: int) -> Any:
    """Which unit [S] is influenced by which ``y`` within ``order - 1`` steps of the ring."""
    return (np.linalg.matrix_power(RING.T, order - 1) > 0).astype(float)


@pytest.mark.parametrize(("order", "old"), [(1, True), (2, True), (3, False), (4, True)])
def test_influence_is_cut_off_beyond_the_order(order: int, old: bool) -> None:
    executor, operands = ready(Ring(), bt.SnAp, n=2, downstream="step")
    rule, block = SnApRule(executor, None, order), block_of(executor, old=old)
    mask = kept(order)
    assert (rule.masks[0] is None) == bool(mask.all())
    if rule.masks[0] is not None:
        assert np.array_equal(rule.masks[0].reshape(HIDDEN, -1, HIDDEN)[:, 0], mask > 0)
    first, traces = rule.advance(None, part(block, 0, 1), operands)
    second, traces = rule.advance(traces, part(block, 1, None), operands)
    expected, eps, _ = by_loops(block, mask=mask[:, None, None])
    np.testing.assert_allclose(first[0]["weight"] + second[0]["weight"], expected, rtol=1e-10)
    np.testing.assert_allclose(traces[0]["weight"], eps, rtol=1e-10)
    assert rule.name == f"SnAp-{order}"


def test_over_a_dense_product_two_steps_are_all_of_rtrl() -> None:
    executor, operands = ready(Recurrent(), bt.SnAp, n=2, downstream="step")
    block = block_of(executor)
    rules = SnApRule(executor, None, 2), ParamDimRule(executor)
    assert_tree_close(*(rule.solve(None, block, operands) for rule in rules), 1e-10)


def test_near_jacobians_are_not_enough() -> None:
    executor, _ = ready()
    with pytest.raises(ValueError, match="SnApRule needs whole Jacobians"):
        SnApRule(executor, None, 1)
