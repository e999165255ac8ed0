# SPDX-License-Identifier: Apache-2.0
"""Drivers of whole sequences: masks, windows, updates on the way, checks, progress."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import (
    B,
    Net,
    T,
    made,
    of_windows,
    summed,
)

# --- masks ---------------------------------------------------------------------------------------


# --- windows -------------------------------------------------------------------------------------


def test_the_losses_of_windows_cannot_be_differentiated(data: Any) -> None:
    """Their derivative would stop at the borders of windows."""
    xs, ys = data
    learner = made(vjp_method="multi-step")
    options = {"step_fn": of_windows(learner), "chunk_size": 3, "return_value": True}
    with pytest.raises(bt.NotSupportedError, match="cannot be differentiated"):
        brainstate.transform.grad(lambda xs: learner.etrace_grad(xs, ys, **options)[1].sum())(xs)


# --- updates on the way --------------------------------------------------------------------------


# --- under transformations -----------------------------------------------------------------------


def test_drivers_under_jit(data: Any) -> None:
    a, b = made(), made()

    @brainstate.transform.jit
    def run(xs: Any, ys: Any) -> Any:
        a.reset_state(B, model_states=True)
        return a.etrace_grad(xs, ys, step_fn=summed(a)), a.etrace_evolve(xs, return_outputs=True)

    grads, outputs = run(*data)
    assert_tree_close(grads, b.etrace_grad(*data, step_fn=summed(b)))
    assert_tree_close(outputs, b.etrace_evolve(data[0], return_outputs=True))


def test_calls_outside_of_jit_are_compiled_once(data: Any, caplog: Any) -> None:
    learner = made(model=Net().cell)

    def grad() -> None:
        brainstate.transform.grad(lambda: learner(data[0][0]).sum(), learner.param_states)()

    with jax.log_compiles():
        grad()
        assert "XLA compilation" in caplog.text
        caplog.clear()
        grad()
    assert "XLA compilation" not in caplog.text


def test_a_setting_that_only_the_loss_reads_is_looked_up_at_every_call(data: Any) -> None:
    learner, dropout = made(), brainstate.nn.Dropout(0.5)

    def loss(x: Any, y: Any) -> Any:
        scale = brainstate.environ.get("scale", 1.0)
        return scale * ((dropout(learner(x)) - y) ** 2).sum()

    def found(driver: str = "etrace_grad", **settings: Any) -> Any:
        learner.reset_state(B, model_states=True)
        brainstate.random.seed(0)
        options = {"optimizer": optax.sgd(0.0)} if driver == "etrace_update" else {}
        options |= {"return_value": True} if driver == "etrace_grad" else {}
        with brainstate.environ.context(**settings):
            result = getattr(learner, driver)(*data, step_fn=loss, **options)
        return result[1] if driver == "etrace_grad" else result

    fitted, plain = found(fit=True), found(fit=False)
    assert not np.allclose(fitted, plain)
    doubled = found(fit=False, scale=2.0)
    np.testing.assert_allclose(doubled, 2.0 * plain, rtol=1e-12)
    np.testing.assert_array_equal(found(fit=True), fitted)
    np.testing.assert_array_equal(found(fit=False), plain)
    np.testing.assert_allclose(found("etrace_update", fit=False), plain, rtol=1e-12)
    again = found("etrace_update", fit=False, scale=2.0)
    np.testing.assert_allclose(again, doubled, rtol=1e-12)


def test_a_setting_that_nothing_reads_compiles_nothing(data: Any, caplog: Any) -> None:
    learner = made()
    step = summed(learner)
    learner.etrace_grad(*data, step_fn=step)
    learner.etrace_grad(*data, step_fn=step)
    with jax.log_compiles(), brainstate.environ.context(unread=3.0):
        learner.etrace_grad(*data, step_fn=step)
    assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("driver", ["etrace_grad", "etrace_update"])
def test_a_step_fn_that_writes_a_hidden_state_is_refused(when: str, driver: str, data: Any) -> None:
    """The trace would go on as if it had not been reset."""
    learner = made()
    h = learner.model.cell.h
    done = jnp.zeros(T).at[3].set(1.0)

    def step(x: Any, y: Any, done: Any) -> Any:
        if when == "before":
            h.value = h.value * (1 - done)
        out = learner(x)
        if when == "after":
            h.value = h.value * (1 - done)
        return ((out - y) ** 2).sum()

    options = {"optimizer": optax.sgd(0.1)} if driver == "etrace_update" else {}
    with pytest.raises(ValueError, match=r"step_fn writes the hidden state cell\.h.*Let the model"):
        getattr(learner, driver)(*data, done, step_fn=step, **options)


def test_a_call_in_a_checkpoint_and_a_scan(data: Any) -> None:
    """The loss around a loop of calls has the sum of their online gradients."""
    xs, ys = data
    learner, other = made(), made()

    def loss() -> Any:
        step = brainstate.transform.checkpoint(summed(learner))
        return brainstate.transform.for_loop(step, xs, ys).sum()

    grads = brainstate.transform.grad(loss, learner.param_states)()
    expected = other.etrace_grad(xs, ys, step_fn=summed(other), reduction="sum")
    assert_tree_close(dict(grads), expected)


# --- checks and progress -------------------------------------------------------------------------


# --- what is refused -----------------------------------------------------------------------------


# --- configurations ------------------------------------------------------------------------------


# --- signals that are given ----------------------------------------------------------------------
