# SPDX-License-Identifier: Apache-2.0
"""What is left out of the first step after a reset."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from braintrace.algorithms import Block
from braintrace.drivers.first import block_without_past, unless_first, without_past
from braintrace.executor.jacobians import StepJacobians

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
