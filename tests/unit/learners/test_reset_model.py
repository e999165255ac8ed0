# SPDX-License-Identifier: Apache-2.0
"""Resetting the states of a compiled model."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from tests import zoo
from tests.unit.learners.bench import Bench, refused


def test_reset_without_the_batch_axis(bench: Bench) -> None:
    says = r"batch_size=None resets [hv] to shape \(4,\).*compiled for \(2, 4\).*compile again"
    with refused(bench, ValueError, says):
        bench.learner.reset_state(model_states=True)


class Kept(zoo.Leaky):
    """Its state is made and never reset."""

    reset_state = brainstate.nn.Module.reset_state


def test_a_state_that_is_not_reset_is_a_warning() -> None:
    inner = Kept()
    learner = bt.compile(
        brainstate.nn.Sequential(inner), "d_rtrl", jnp.ones((2, zoo.IN)), batch_size=2
    )
    learner.reset_state(2)  # the traces alone
    with pytest.warns(UserWarning, match=r"leaves the hidden state .*h as it is, because Kept has"):
        learner.reset_state(2, model_states=True)
