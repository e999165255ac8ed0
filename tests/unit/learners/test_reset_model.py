# SPDX-License-Identifier: Apache-2.0
"""Resetting the states of a compiled model."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.learners.reset_model import _resized
from braintrace.testing import assert_tree_close
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


class Starting(brainstate.nn.Module):
    """The start of its state is a parameter: by the reset alone, also in steps, or in the first."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.w = brainstate.ParamState(jnp.ones((zoo.IN, 3)) / 7)
        self.start = brainstate.ParamState(jnp.array([0.3, -0.2, 0.5]))

    def init_state(self, batch_size: Any = None, **_: Any) -> None:
        own = jnp.zeros(3) if self.way == "first step" else self.start.value
        self.h = brainstate.HiddenState(jnp.broadcast_to(own, (2, 3)))

    def update(self, x: Any, first: Any) -> Any:
        h = self.h.value
        if self.way == "first step":
            h = h + first * bt.element_wise(self.start.value)
        self.h.value = 0.8 * h * jnp.cos(h) + bt.matmul(x, self.w.value)
        return self.h.value + (self.start.value if self.way == "steps" else 0.0)


def test_a_start_that_is_trained_is_right_in_the_first_step_and_a_constant_of_a_reset() -> None:
    xs = jax.random.normal(jax.random.key(0), (4, 2, zoo.IN), float)
    first = jnp.arange(4) == 0

    def learner(way: str) -> Any:
        return bt.compile(Starting(way), "d_rtrl", xs[0], first[0], batch_size=2)

    def found(way: str) -> Any:
        made = learner(way)
        return made.etrace_grad(
            xs, first, step_fn=lambda x, f: (made(x, f) ** 2).sum(), reduction="sum"
        )["start",]

    def total(start: Any, of_h: bool, of_out: bool) -> Any:
        held = jax.lax.stop_gradient(start)
        h, loss = jnp.broadcast_to(start if of_h else held, (2, 3)), 0.0
        for x in xs:
            h = 0.8 * h * jnp.cos(h) + x @ (jnp.ones((zoo.IN, 3)) / 7)
            loss += ((h + (start if of_out else 0.0)) ** 2).sum()
        return loss

    start = jnp.array([0.3, -0.2, 0.5])
    assert_tree_close(found("first step"), jax.grad(total)(start, True, False))
    assert_tree_close(found("steps"), jax.grad(total)(start, False, True))
    with pytest.raises(bt.CompilationError, match="start: the step does not read it"):
        learner("reset")


class Resting(brainstate.nn.Module):
    """It starts at a trained attribute, which its steps read, too."""

    rest = bt.nn.TrainedAttribute()

    def __init__(self) -> None:
        super().__init__()
        self.rest = jnp.array([0.5, 2.0])

    def init_state(self, batch_size: Any = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(jnp.broadcast_to(self.rest, (3, 2)))

    def reset_state(self, batch_size: Any = None, **_: Any) -> None:
        self.h.value = jnp.broadcast_to(self.rest, (3, 2))

    def update(self, x: Any) -> Any:
        self.h.value = self.h.value + 0.3 * (self.rest - self.h.value) + x * self.h.value**2
        return self.h.value


def test_a_start_at_a_trained_attribute_follows_it_and_is_a_constant() -> None:
    xs = 0.1 * jax.random.normal(jax.random.key(0), (4, 3, 2), float)
    learner = bt.compile(Resting(), "d_rtrl", xs[0], batch_size=3)
    learner.model.rest_param.value = jnp.log(jnp.array([0.7, 1.5]))
    learner.reset_state(batch_size=3, model_states=True)
    np.testing.assert_allclose(learner.model.h.value[0], [0.7, 1.5], rtol=1e-6)
    found = learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).sum(), reduction="sum")

    def total(parameter: Any) -> Any:
        rest, loss = jnp.exp(parameter), 0.0
        h = jax.lax.stop_gradient(jnp.broadcast_to(rest, (3, 2)))
        for x in xs:
            h = h + 0.3 * (rest - h) + x * h**2
            loss += (h**2).sum()
        return loss

    expected = jax.grad(total)(jnp.log(jnp.array([0.7, 1.5])))
    assert_tree_close(found["rest_param",], expected)
