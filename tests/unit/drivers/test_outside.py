# SPDX-License-Identifier: Apache-2.0
"""What is said of credit that passes ``step_fn`` in the place of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from tests.unit.drivers.net import IN, B, made


def said(step_fn: Callable[[Any, Any], Any], **options: Any) -> list[str]:
    learner, xs = made(**options), jax.random.normal(jax.random.key(0), (4, B, IN), float)
    size = {"chunk_size": 2} if "slices" in step_fn.__name__ else {}
    with warnings.catch_warnings(record=True, action="always") as found:
        learner.etrace_grad(xs, step_fn=lambda x: step_fn(learner, x), **size)
    return [str(warning.message) for warning in found]


def hidden(learner: Any) -> Any:
    return learner.model.cell.h.value[:, :IN]


def of_parameter(learner: Any, x: Any) -> Any:
    return learner(x * learner.model.readout.weight.value["bias"]).sum()


def of_state(learner: Any, x: Any) -> Any:
    return learner(x + hidden(learner)).sum()


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize(
    ("step_fn", "name"), [(of_parameter, "readout.weight"), (of_state, "cell.h")]
)
def test_arguments_made_of_parameters_or_states(step_fn: Any, name: str, windows: bool) -> None:
    options = {"vjp_method": "multi-step"} if windows else {}
    (text,) = said(step_fn, **options)
    assert text.startswith(f"step_fn makes arguments of the learner from {name}, and")


def reads_before(learner: Any, x: Any) -> Any:
    return hidden(learner).sum() * learner(x).sum()


def reads_before_slices(learner: Any, x: Any) -> Any:
    return hidden(learner).sum() * learner(bt.MultiStepData(x)).sum((1, 2))


@pytest.mark.parametrize("step_fn", [reads_before, reads_before_slices])
def test_a_loss_of_what_was_before_a_window(step_fn: Any) -> None:
    (text,) = said(step_fn, vjp_method="multi-step")
    assert text.startswith("the loss of step_fn reads cell.h of before the call")


def reads_after(learner: Any, x: Any) -> Any:
    return learner(x).sum() + hidden(learner).sum()


def regularised(learner: Any, x: Any) -> Any:
    return learner(x).sum() + (learner.model.readout.weight.value["weight"] ** 2).sum()


def without_derivative(learner: Any, x: Any) -> Any:
    shown = jax.lax.stop_gradient(hidden(learner))
    return (learner(jnp.where(hidden(learner) > 0, x, -x) + shown) * shown).sum()


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("step_fn", [reads_after, regularised, without_derivative])
def test_what_the_gradient_has_is_not_mentioned(step_fn: Any, windows: bool) -> None:
    assert not said(step_fn, **({"vjp_method": "multi-step"} if windows else {}))


def test_the_state_before_is_credited_in_single_steps() -> None:
    assert not said(reads_before)


def test_nothing_is_left_out_of_a_single_window() -> None:
    learner, xs = made(vjp_method="multi-step"), jax.random.normal(jax.random.key(0), (4, B, IN))

    def step_fn(x: Any) -> Any:
        bias = learner.model.readout.weight.value["bias"]
        return learner(bt.MultiStepData(x * bias)).sum((1, 2))

    with warnings.catch_warnings(record=True, action="always") as found:
        learner.etrace_grad(xs, step_fn=step_fn, chunk_size=4)
    assert not found
