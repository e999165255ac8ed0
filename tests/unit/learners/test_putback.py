# SPDX-License-Identifier: Apache-2.0
"""States that are put back to their values before a reset, with the traces and without them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import brainstate
import jax
import numpy as np
import pytest

import braintrace as bt
from tests import zoo

BATCH = 2
XS = np.random.default_rng(0).normal(size=(3, BATCH, zoo.IN))


def reset(model: Any) -> None:
    brainstate.nn.reset_all_states(model, batch_size=BATCH)


@cache
def made() -> tuple[Any, Any]:
    """A learner, and some steps, compiled once: no Python runs with them."""
    learner = bt.compile(zoo.Leaky(), "d_rtrl", XS[0], batch_size=BATCH)
    steps = brainstate.transform.jit(lambda: brainstate.transform.for_loop(learner, XS))
    steps()
    return learner, steps


@pytest.fixture
def learner() -> Any:
    return made()[0]


@pytest.fixture
def train() -> Any:
    return made()[1]


def evaluate(model: Any) -> None:
    for _ in range(2):
        reset(model)
        brainstate.transform.for_loop(model, XS)


def states_alone(learner: Any) -> None:
    before = learner.model.h.value
    evaluate(learner.model)
    learner.model.h.value = before


def inside_of_a_program(learner: Any) -> None:
    with jax.checking_leaks():
        brainstate.transform.jit(lambda: states_alone(learner))()


@pytest.mark.parametrize("put_back", [states_alone, inside_of_a_program])
@pytest.mark.parametrize("called", [True, False])
def test_traces_that_were_not_put_back_are_said_once(
    learner: Any, train: Any, put_back: Callable[[Any], None], called: bool
) -> None:
    train()
    with pytest.warns(UserWarning, match="put back .* and the traces, .*, were not") as said:
        put_back(learner)
        _ = learner(XS[0]) if called else train()
        train()
        learner(XS[0])
    assert len(said) == 1


def everything(learner: Any) -> None:
    before = {state: state.value for state in brainstate.graph.states(learner).values()}
    evaluate(learner.model)
    for state, value in before.items():
        state.value = value


def and_reset(learner: Any) -> None:
    states_alone(learner)
    reset(learner.model)


def and_reset_by_the_learner(learner: Any) -> None:
    states_alone(learner)
    learner.reset_state(BATCH, model_states=True)


def to_the_start(learner: Any) -> None:
    """The value after a reset is a start of its own."""
    reset(learner.model)
    start = learner.model.h.value
    reset(learner.model)
    learner.model.h.value = start


def to_the_start_of_all(learner: Any) -> None:
    learner.reset_state(BATCH, model_states=True)
    states_alone(learner)


@pytest.mark.parametrize(
    "done", [everything, and_reset, and_reset_by_the_learner, to_the_start, to_the_start_of_all]
)
def test_where_no_credit_is_lost_nothing_is_said(learner: Any, train: Any, done: Any) -> None:
    train()
    traces = learner.read_traces()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done(learner)
        if done is everything:
            jax.tree.map(np.testing.assert_array_equal, learner.read_traces(), traces)
        train()
        learner(XS[0])
