# SPDX-License-Identifier: Apache-2.0
"""What is left out of the first step after a reset."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import Block
from braintrace.drivers.first import (
    block_without_past,
    drives_every_state,
    finite_where_still,
    unless_first,
    without_past,
)
from braintrace.executor.jacobians import StepJacobians
from tests.unit.drivers.net import made

NAN = jnp.full((3, 1, 1, 2), jnp.nan)


def jacobians(*transitions: Any) -> StepJacobians:
    return StepJacobians((), (), transitions)


@pytest.mark.parametrize("first", [True, False, jnp.array(True), jnp.array(False)])
def test_the_first_step_of_all_has_no_transition(first: Any) -> None:
    found = without_past(jacobians(NAN, None, NAN), first, jacobians(True, None, False))
    moving, none, constant = found.transition
    assert none is None and constant is NAN
    assert jnp.isnan(moving[1:]).all()
    assert bool((moving[0] == 0).all()) == bool(first)


@pytest.mark.parametrize("first", [True, False, jnp.array(True)])
def test_old_signals_are_left_out_as_well(first: Any) -> None:
    old = jnp.full((3, 1, 2), jnp.inf)
    block = Block(jacobians(NAN), (old,), (old, None))
    marks = Block(jacobians(True), (True,), (True, None))
    found = block_without_past(block, first, marks)
    assert (found is block) == (first is False)
    assert bool((found.old_signal[0][0] == 0).all()) == bool(first)
    assert jnp.isinf(found.old_signal[0][1:]).all() and found.old_signal[1] is None
    assert found.signal is block.signal
    at_start, none = unless_first((old[0], None), first)
    assert bool((at_start == 0).all()) == bool(first) and none is None


class Late(brainstate.nn.Module):
    """A variance of what a leak was before, which is read."""

    def __init__(self) -> None:
        super().__init__()
        self.w = bt.nn.Linear(3, 2)
        self.h, self.v = brainstate.HiddenState(jnp.zeros(2)), brainstate.HiddenState(jnp.zeros(2))

    def update(self, x: Any) -> Any:
        self.v.value = 0.9 * self.v.value + self.h.value**2
        self.h.value = jnp.tanh(0.8 * self.h.value + self.w(x))
        return self.v.value**2


def test_what_a_step_does_not_move_hears_no_infinite_number() -> None:
    """``v`` at the first step; its filter also where ``D`` from the others is zero."""
    learner = bt.compile(Late(), "eprop", jnp.ones(3), kappa_filter_decay=0.5)
    executor = learner.rule.executor
    assert not drives_every_state(executor) and drives_every_state(made().rule.executor)
    (paths,) = [positions.group.hidden_paths for positions in executor.driven]
    h, v, q = map(paths.index, [("h",), ("v",), ("<filter>", "0")])
    D = np.zeros((2, 3, 3, 2))
    D[:, h, h], D[:, v, v], D[:, q, q], D[1, q, v, 0] = 1, 1, 1, 1
    jac = StepJacobians((), (), (jnp.asarray(D),))
    block = Block(jac, (jnp.full((2, 3, 2), jnp.nan),), (None,))
    for first, spared in ((jnp.array(True), 0), (False, np.nan)):
        (found,) = finite_where_still(executor, block, first).signal
        heard = np.full((2, 3, 2), np.nan)
        heard[0, v], heard[0, q], heard[1, q, 1] = spared, 0, 0
        np.testing.assert_array_equal(found, heard)
