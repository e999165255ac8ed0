# SPDX-License-Identifier: Apache-2.0
"""The oracle of windows against reverse mode, and predicted gradients at their ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.testing import (
    assert_tree_close,
    bptt,
    d_rtrl_oracle,
    dni_reference,
    e_prop_oracle,
    pp_prop_oracle,
    rtrl_oracle,
    snap_oracle,
    truncated_bptt,
    window_oracle,
)

from . import cells
from .cells import Stack, data, loss_fn, second

RTOL = 1e-10
STEPS = 5

RULES: dict[str, Callable[..., Any]] = {
    "d_rtrl": d_rtrl_oracle,
    "coupled": partial(d_rtrl_oracle, recurrence_scope="coupled"),
    "pp_prop": partial(pp_prop_oracle, decay_x=0.7, decay_f=0.6),
    "e_prop": partial(e_prop_oracle, kappa=0.6),
    "rtrl": rtrl_oracle,
    "snap": partial(snap_oracle, n=2),
}


def differs(found: Any, reference: Any) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(found, reference, 1e-3)


def test_one_window_is_bptt() -> None:
    model, sequences = Stack(cells.GRU(), second(cells.LeakyOld)), data(3, out=2)
    losses, grads = bptt(model, sequences, loss_fn)
    for window, name in ((3, "d_rtrl"), (7, "pp_prop")):
        found = window_oracle(RULES[name], model, sequences, loss_fn, window)
        assert_tree_close(found.grads, grads, RTOL)
        assert_tree_close(found.loss, losses, RTOL)
    differs(window_oracle(RULES["rtrl"], model, sequences, loss_fn, 1).grads, grads)


@pytest.mark.parametrize(
    ("cell", "window"), [(cells.LeakyOld, 1), (cells.LIF, 3), (cells.Chain, 2)]
)
def test_position_wise_recurrence_is_bptt(cell: type[cells.Cell], window: int) -> None:
    model, sequences = Stack(cell()), data(STEPS, out=2)
    found = window_oracle(d_rtrl_oracle, model, sequences, loss_fn, window).grads
    assert_tree_close(found, bptt(model, sequences, loss_fn)[1], RTOL)


@pytest.mark.parametrize("window", [1, 2])
def test_rtrl_of_one_group_is_bptt(window: int) -> None:
    model, sequences = Stack(cells.GRUResetAfter()), data(STEPS, out=2)
    _, reference = bptt(model, sequences, loss_fn)
    found = window_oracle(rtrl_oracle, model, sequences, loss_fn, window).grads
    assert_tree_close(found, reference, RTOL)
    coupled = window_oracle(RULES["coupled"], model, sequences, loss_fn, window).grads
    differs(coupled, reference)


def without_bias(grads: Any) -> Any:
    """A plain bias has no trace."""
    return {path: grad for path, grad in grads.items() if path[-1] != "b"}


def test_a_vanilla_rnn_in_windows_of_one_step_is_truncated_to_two() -> None:
    model, sequences = Stack(cells.Vanilla()), data(STEPS, out=2)
    found = window_oracle(d_rtrl_oracle, model, sequences, loss_fn, 1).grads
    _, reference = truncated_bptt(model, sequences, loss_fn, 2)
    assert_tree_close(without_bias(found), without_bias(reference), RTOL)


def from_step(model: Any, sequences: Any, start: int, silent: int, stop: int) -> Any:
    """Reverse mode from ``start`` to ``stop``, without the losses of the first steps."""
    states = brainstate.graph.states(model)
    begin = {path: state.value for path, state in states.items()}
    for x in sequences[0][:start]:
        model(x)
    part = jax.tree.map(lambda s: s[start:stop], sequences)
    counts = (jnp.arange(stop - start) >= silent).astype(float)
    _, grads = bptt(model, (*part, counts), lambda out, y, on: on * loss_fn(out, y))
    for path, state in states.items():
        state.value = begin[path]
    return grads


def test_windows_of_a_vanilla_rnn_reach_one_step_back() -> None:
    """Everything within a window, recurrent products included, and one step before it."""
    model, sequences = Stack(cells.Vanilla()), data(STEPS, out=2)
    parts = [(0, 0, 2), (1, 1, 4), (3, 1, 5)]  # windows of two steps
    terms = [from_step(model, sequences, *part) for part in parts]
    reference = jax.tree.map(lambda *leaves: sum(leaves), *terms)
    found = window_oracle(d_rtrl_oracle, model, sequences, loss_fn, 2).grads
    assert_tree_close(without_bias(found), without_bias(reference), RTOL)


def gradient_of_later(model: Any, sequences: Any, start: int, values: Any) -> Any:
    """The derivative of all losses from ``start`` on in the hidden values there."""
    step = brainstate.transform.StatefulFunction(model.update, return_only_write=False)
    states = step.get_states(sequences[0][0])
    path_of = {id(state): path for path, state in brainstate.graph.states(model).items()}
    paths = [path_of[id(state)] for state in states]

    def later(values: Any) -> Any:
        now = [values.get(p, s.value) for p, s in zip(paths, states, strict=True)]
        total = 0.0 * jnp.sum(values[("h",)])
        for x, y in zip(*(s[start:] for s in sequences), strict=True):
            now, out = step.jaxpr_call(now, x)
            total = total + loss_fn(out, y)
        return total

    return jax.grad(later)(values)


def test_the_boundary_by_hand() -> None:
    """Two windows: influence before the second, times the derivative of its losses."""
    model, sequences, cut = cells.LSTM(), data(STEPS), 3
    first = from_step(model, sequences, 0, 0, cut)["w",]
    rest = from_step(model, sequences, cut, 0, STEPS)["w",]
    prefix = jax.tree.map(lambda s: s[:cut], sequences)
    begin = model.c.value, model.h.value
    for x in prefix[0]:
        model(x)
    values = {("c",): model.c.value, ("h",): model.h.value}
    model.c.value, model.h.value = begin
    later = gradient_of_later(model, sequences, cut, values)
    signal = jnp.concatenate([later["c",].ravel(), later["h",].ravel()])
    found = {}
    for name, rule in RULES.items():
        ((_, influence),) = rule(model, prefix, loss_fn).influence.items()
        boundary = np.tensordot(signal, influence["w",], axes=1)
        found[name] = window_oracle(rule, model, sequences, loss_fn, cut).grads["w",]
        assert_tree_close(found[name], first + rest + boundary, RTOL)
    for name in ("coupled", "pp_prop", "e_prop", "rtrl"):
        differs(found[name], found["d_rtrl"])
    assert_tree_close(found["snap"], found["rtrl"], RTOL)  # every unit hears every other


# --- predicted gradients ---------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "window"), [(cells.GRU, 1), (cells.LSTM, 2), (cells.LSTM, 5)])
def test_an_exact_prediction_gives_bptt(cell: type[cells.Cell], window: int) -> None:
    model, sequences = cell(), data(STEPS)
    losses, grads = bptt(model, sequences, loss_fn)
    predict = partial(gradient_of_later, model, sequences)
    found_losses, found = dni_reference(model, sequences, loss_fn, window, predict)
    assert_tree_close(found, grads, RTOL)
    assert_tree_close(found_losses, losses, RTOL)


def test_no_prediction_is_truncation_at_every_window() -> None:
    model, sequences = cells.LSTM(), data(STEPS)
    _, found = dni_reference(model, sequences, loss_fn, 2, lambda steps_done, values: {})
    terms = [from_step(model, sequences, *part) for part in [(0, 0, 2), (2, 0, 4), (4, 0, 5)]]
    assert_tree_close(found, jax.tree.map(lambda *leaves: sum(leaves), *terms), RTOL)


def test_a_prediction_is_a_constant_and_made_after_every_window() -> None:
    model, sequences = cells.LSTM(), data(3)
    asked = []

    def predict(steps_done: int, values: Any) -> Any:
        asked.append((steps_done, sorted(values)))
        return {("c",): 0.3 * values["c",]}

    _, found = dni_reference(model, sequences, loss_fn, 2, predict)
    assert asked == [(2, [("c",), ("h",)]), (3, [("c",), ("h",)])]
    _, without = dni_reference(model, sequences, loss_fn, 2, lambda steps_done, values: {})
    differs(found, without)


# --- errors ----------------------------------------------------------------------------------


def test_wrong_arguments_are_refused() -> None:
    model, sequences = cells.Leaky(), data(2)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        window_oracle(d_rtrl_oracle, model, sequences, loss_fn, 0)
    with pytest.raises(ValueError, match="window must be at least 1, got -1"):
        dni_reference(model, sequences, loss_fn, -1, lambda steps_done, values: {})
