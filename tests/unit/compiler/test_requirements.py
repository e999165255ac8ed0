# SPDX-License-Identifier: Apache-2.0
"""What a call must bring."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace as bt
from braintrace.compiler.requirements import check_states, checked_args, state_lookup
from tests import zoo
from tests.zoo import HIDDEN, IN


class InVolt(zoo.Leaky):
    """Takes a voltage."""

    def update(self, x: Any) -> Any:
        return super().update(x["v"] / u.mV)


@pytest.fixture
def info() -> Any:
    model = InVolt()
    brainstate.nn.init_all_states(model, batch_size=2)
    return bt.extract_module_info(model, {"v": jnp.ones((2, IN)) * u.mV})


def test_arguments_come_in_the_units_that_were_compiled(info: Any) -> None:
    (leaf,) = checked_args(info, ({"v": jnp.ones((2, IN)) * u.volt},))
    assert jnp.allclose(leaf, 1000.0)


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        (
            ({"v": jnp.ones((2, IN)) * u.second},),
            ValueError,
            "have the unit s instead of the unit mV",
        ),
        ((jnp.ones((2, IN)),), ValueError, "the arguments have structure .* compiled for"),
        (({"v": jnp.ones((5, IN)) * u.mV},), ValueError, r"shape \(5, 3\).*call reset_state"),
        (
            ({"v": jnp.ones((2, IN), "int32") * u.mV},),
            ValueError,
            "has shape .* and dtype .*; convert it",
        ),
    ],
)
def test_arguments_that_do_not_fit(args: Any, error: Any, text: str, info: Any) -> None:
    with pytest.raises(error, match=text):
        checked_args(info, args)


def test_a_remedy_for_another_shape(info: Any) -> None:
    with pytest.raises(ValueError, match="; wrap it$"):
        checked_args(info, ({"v": jnp.ones((5, IN)) * u.mV},), "wrap it")


def test_a_step_more_or_an_axis_less(info: Any) -> None:
    for shape, text in (
        ((7, 2, IN), "several steps are for etrace_grad .* or for braintrace.MultiStepData$"),
        ((IN,), r"an axis in front is missing; sequences .* are \[T, \.\.\.\]$"),
        ((5, IN), r"for another batch size, call reset_state"),
    ):
        with pytest.raises(ValueError, match=text):
            checked_args(info, ({"v": jnp.ones(shape) * u.mV},))


@pytest.fixture
def compiled() -> Any:
    model = zoo.Leaky()
    brainstate.nn.init_all_states(model, batch_size=2)
    return model, bt.extract_module_info(model, jnp.ones((2, IN)))


def test_states_as_they_were_compiled(compiled: Any) -> None:
    model, info = compiled
    check_states(model, info)
    for value, text in (
        (jnp.ones((3, HIDDEN)), r"the state h has shape \(3, 4\), but .* compiled for \(2, 4\)"),
        (jnp.ones((2, HIDDEN), "float32"), "the state h has dtype float32"),
        (jnp.ones((2, HIDDEN)) * u.mV, "the state h has the unit mV instead of no unit, unlike"),
    ):
        model.h.value = value
        with pytest.raises(ValueError, match=text):
            check_states(model, info)


def test_states_made_anew_and_settings_that_changed(compiled: Any) -> None:
    model, info = compiled
    model.w = zoo.weight(IN, HIDDEN)
    with pytest.raises(bt.CompilationError, match="the param state w was initialised again, repl"):
        check_states(model, info)


class Reading(zoo.Leaky):
    """Reads a setting."""

    def update(self, x: Any) -> Any:
        return brainstate.environ.get("gain", 1.0) * super().update(x)


def test_a_setting_of_another_value() -> None:
    model = Reading()
    brainstate.nn.init_all_states(model, batch_size=2)
    info = bt.extract_module_info(model, jnp.ones((2, IN)))
    check_states(model, info)
    text = "the model reads 'gain' from brainstate.environ, which was not set .*and is 2.0 now"
    with brainstate.environ.context(gain=2.0), pytest.raises(bt.CompilationError, match=text):
        check_states(model, info)


def test_the_object_at_a_path() -> None:
    model = zoo.Leaky()
    model.parts = {"a": [model.w], 3: "three"}
    assert state_lookup(model, ("parts", "a", 0)) is model.w
    assert state_lookup(model, ("parts", 3)) == "three"
    assert state_lookup(model, ("parts", "b")) is None
    assert state_lookup(model, ("absent", "w")) is None
