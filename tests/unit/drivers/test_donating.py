# SPDX-License-Identifier: Apache-2.0
"""Traces are written over themselves where nobody else holds them, and only there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.drivers.donating import is_held_alone
from tests import zoo

XS = np.ones((3, 2, zoo.IN))


@pytest.fixture
def called() -> tuple[Any, Callable[..., Any]]:
    xs = jnp.asarray(XS)
    learner = bt.compile(zoo.Leaky(), "d_rtrl", xs[0], batch_size=2, downstream="step")

    def step(x: Any) -> Any:
        return (learner(x) ** 2).sum()

    def call(**options: Any) -> bool:
        """Whether the trace lies where it lay before."""
        place = leaf(learner).unsafe_buffer_pointer()
        learner.etrace_grad(xs, step_fn=step, **options)
        return leaf(learner).unsafe_buffer_pointer() == place

    return learner, call


def leaf(learner: Any) -> jax.Array:
    return next(iter(learner.traces[0].value.values()))


def test_a_trace_is_written_over_itself(called: Any) -> None:
    learner, call = called
    assert call()
    learner.reset_state()
    assert call()
    assert not call(check=True)  # which may put it back
    call(carry_trace=False)
    assert not leaf(learner).any()


@pytest.mark.parametrize("held", ["array", "dict", "view", "snapshot"])
def test_what_is_held_elsewhere_is_kept(called: Any, held: str) -> None:
    learner, call = called
    call()
    (trace,) = learner.traces
    kept: Any = {
        "array": lambda: leaf(learner),
        "dict": lambda: trace.value,
        "view": lambda: memoryview(leaf(learner)),
        "snapshot": lambda: brainstate.graph.treefy_states(learner),
    }[held]()
    before = jnp.array(leaf(learner))
    assert not is_held_alone(trace)
    assert not call()
    if held != "snapshot":
        array = kept["weight"] if held == "dict" else kept
        assert (jnp.asarray(array) == before).all()
    else:
        brainstate.graph.update_states(learner, kept)
        assert (leaf(learner) == before).all()


def test_a_call_that_stops_says_that_its_traces_start_anew(called: Any) -> None:
    learner, xs = called[0], jnp.asarray(XS)
    learner.etrace_evolve(xs)
    states = learner.model.states(brainstate.HiddenState)
    before = {path: state.value for path, state in states.items()}
    driver = learner._drivers._kept[-1][2]
    program = driver.donated

    def stopped(*args: Any) -> Any:
        program(*args)
        raise KeyboardInterrupt

    driver.donated = stopped
    with pytest.raises(KeyboardInterrupt) as error:
        learner.etrace_evolve(xs)
    driver.donated = program
    assert "check=True" in error.value.__notes__[-1]
    assert not leaf(learner).any()
    assert all(state.value is before[path] for path, state in states.items())
    learner.etrace_evolve(xs)
    assert leaf(learner).any()


def test_traces_of_zeros_are_kept_where_weights_are_mapped() -> None:
    xs = jnp.asarray(XS[:, 0])

    def lesson(shift: jax.Array) -> Any:
        model = bt.nn.MGUCell(zoo.IN, 4)
        for state in model.states(brainstate.ParamState).values():
            state.value = jax.tree.map(lambda v: v + shift, state.value)
        learner = bt.compile(model, "d_rtrl", xs[0])
        return learner.etrace_update(
            xs, step_fn=lambda x: (learner(x) ** 2).sum(), optimizer=optax.sgd(0.1)
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Some donated buffers")
        found = brainstate.transform.vmap(lesson)(jnp.arange(5.0))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_values_of_other_kinds_and_several_devices_are_kept(
    called: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_held_alone(brainstate.ShortTermState(jnp.ones(2)))
    assert not is_held_alone(brainstate.ShortTermState({"a": 1.0}))
    monkeypatch.setattr(versions, "several_devices", lambda: True)
    assert not called[1]()
    with jax.disable_jit():
        called[0].etrace_evolve(jnp.asarray(XS))
