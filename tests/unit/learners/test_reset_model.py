# SPDX-License-Identifier: Apache-2.0
"""Resetting the states of a compiled model."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.learners.reset_model import _resized
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


def test_another_batch_is_compiled_anew() -> None:
    learner = bt.compile(zoo.Leaky(), "d_rtrl", jnp.ones((2, zoo.IN)), batch_size=2)
    learner.reset_state(batch_size=5, model_states=True)
    assert learner.model.h.value.shape == (5, zoo.HIDDEN)
    assert learner(jnp.ones((5, zoo.IN))).shape == (5, zoo.HIDDEN)
    with pytest.raises(ValueError, match="compiled for shape"):
        learner(jnp.ones((2, zoo.IN)))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3), (5, 3)),
        ((3, 2), (3, 5)),  # the only axis of that length
        ((2, 2), (5, 2)),  # the first one
        ((3, 2, 2), (3, 2, 2)),  # none of two in the middle
        ((3, 4), (3, 4)),
        ((), ()),
    ],
)
def test_where_the_batch_of_an_argument_is(shape: Any, expected: Any) -> None:
    found = _resized(jax.ShapeDtypeStruct(shape, "float32"), old=2, new=5)
    assert (found.shape, found.dtype) == (expected, "float32")


class Uneven(zoo.Leaky):
    """A model whose states come out with another shape in two axes."""

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h.value = jnp.zeros((batch_size, zoo.HIDDEN + 1))


class UnevenAnew(Uneven):
    """The same, of a state that is made anew."""

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, zoo.HIDDEN + 1)))


@pytest.mark.parametrize("make", [Uneven, UnevenAnew])
def test_another_shape_is_refused_and_states_are_as_they_were(make: type) -> None:
    learner = bt.compile(make(), "d_rtrl", jnp.ones((2, zoo.IN)), batch_size=2)
    state, before = learner.model.h, learner.model.h.value
    text = r"batch_size=5 resets h to shape \(5, 5\), but the learner was compiled for \(2, 4\)"
    with pytest.raises(ValueError, match=text):
        learner.reset_state(batch_size=5, model_states=True)
    assert learner.model.h is state and state.value is before
