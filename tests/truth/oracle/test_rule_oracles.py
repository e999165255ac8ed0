# SPDX-License-Identifier: Apache-2.0
"""The oracles of RTRL, SnAp, e-prop and three-factor rules: limits, and definitions by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.testing import (
    assert_tree_close,
    bptt,
    d_rtrl_oracle,
    e_prop_oracle,
    rtrl_oracle,
    snap_oracle,
    three_factor_oracle,
    truncated_bptt,
)

from . import cells
from .cells import Stack, data, loss_fn, mm, normal, second

RTOL = 1e-10
STEPS = 5

ONE_STEP: dict[str, Callable[..., Any]] = {
    "rtrl": rtrl_oracle,
    "snap-1": partial(snap_oracle, n=1),
    "snap-2": partial(snap_oracle, n=2),
    "e-prop": partial(e_prop_oracle, kappa=0.6),
}

MODELS: list[Callable[[], Any]] = [
    cells.GRU,
    cells.LeakyOld,
    cells.Processed,
    cells.Partial,
    lambda: Stack(cells.LSTM(), second(cells.LIF)),
]


def differs(found: Any, reference: Any) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(found, reference, 1e-3)


def only(grads: Any, *names: str) -> Any:
    """Those of the first cell of a stack."""
    return {name: grads["cells", 0, name] for name in names}


@pytest.mark.parametrize("make", MODELS)
def test_one_step_is_the_ordinary_gradient(make: Callable[[], Any]) -> None:
    model = make()
    sequences = data(1, out=2 if isinstance(model, Stack) else 3)
    _, grads = bptt(model, sequences, loss_fn)
    for name, rule in ONE_STEP.items():
        if name == "snap-2" and not isinstance(model, cells.GRU):
            continue
        assert_tree_close(rule(model, sequences, loss_fn).grads, grads, RTOL)


# --- RTRL ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "traced", "current"),
    [
        (cells.Vanilla, ["w"], ["b"]),
        (cells.GRU, ["wz", "wc"], ["wr"]),
        (cells.GRUResetAfter, ["wz", "wr", "wx", "wh"], []),
        (cells.LSTM, ["w"], ["b"]),
        (cells.Open, ["w", "r"], []),
        (cells.Mixing, ["w"], ["r"]),
    ],
)
def test_rtrl_of_one_group_is_bptt(
    cell: type[cells.Cell], traced: list[str], current: list[str]
) -> None:
    """But for parameters outside the relations, which have the gradient of the current step."""
    model, sequences = Stack(cell()), data(STEPS, out=2)
    _, whole = bptt(model, sequences, loss_fn)
    _, now = truncated_bptt(model, sequences, loss_fn, 1)
    reference = {**whole, **{("cells", 0, name): now["cells", 0, name] for name in current}}
    assert_tree_close(rtrl_oracle(model, sequences, loss_fn).grads, reference, RTOL)
    diagonal = d_rtrl_oracle(model, sequences, loss_fn, recurrence_scope="coupled")
    differs(only(diagonal.grads, *traced), only(whole, *traced))


def test_rtrl_of_two_layers_leaves_out_the_future_of_the_other() -> None:
    def make(cut: bool) -> Stack:
        return Stack(cells.GRUResetAfter(), second(cells.Vanilla, cut=cut))

    sequences = data(STEPS, out=2)
    _, first = bptt(make(True), sequences, loss_fn)
    _, whole = bptt(make(False), sequences, loss_fn)
    _, now = truncated_bptt(make(False), sequences, loss_fn, 1)
    bias = ("cells", 1, "b")
    reference = {path: (first if path[1:2] == (0,) else whole)[path] for path in whole}
    found = rtrl_oracle(make(False), sequences, loss_fn).grads
    assert_tree_close(found, {**reference, bias: now[bias]}, RTOL)
    differs(only(found, "wz", "wx"), only(whole, "wz", "wx"))


# --- SnAp ------------------------------------------------------------------------------------


class Ring(cells.Cell):
    """Four units, each of which hears itself and one neighbour."""

    n_hidden = 4
    mask = np.eye(4) + np.roll(np.eye(4), 1, axis=1)

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.r = self.weight(1, self.n_hidden, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: Any) -> Any:
        drive = mm(x, self.w.value) + mm(self.h.value, self.mask * self.r.value)
        self.h.value = jnp.tanh(drive)
        return self.h.value


@pytest.mark.parametrize("cell", [cells.GRUResetAfter, cells.LSTM, Ring])
def test_snap_1_is_the_coupled_diagonal(cell: type[cells.Cell]) -> None:
    model, sequences = cell(), data(STEPS, out=cell.n_hidden)
    coupled = d_rtrl_oracle(model, sequences, loss_fn, recurrence_scope="coupled")
    assert_tree_close(snap_oracle(model, sequences, loss_fn, 1).grads, coupled.grads, RTOL)


@pytest.mark.parametrize(("cell", "enough"), [(cells.GRUResetAfter, 2), (cells.LSTM, 2), (Ring, 4)])
def test_saturated_snap_is_rtrl(cell: type[cells.Cell], enough: int) -> None:
    model, sequences = cell(), data(STEPS, out=cell.n_hidden)
    full = rtrl_oracle(model, sequences, loss_fn).grads
    for n in (enough, enough + 3):
        assert_tree_close(snap_oracle(model, sequences, loss_fn, n).grads, full, RTOL)
    differs(snap_oracle(model, sequences, loss_fn, enough - 1).grads, full)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_snap_on_a_ring_by_hand(n: int) -> None:
    """The influence of the drive of unit ``q`` is kept at units up to ``n - 1`` further on."""
    model, (xs, ys) = Ring(batch=None), data(STEPS, None, out=4)
    w, r, h = (np.asarray(value) for value in (model.w.value, model.r.value, model.h.value))
    near = np.array([[(p - q) % 4 < n for q in range(4)] for p in range(4)])
    each, grad = np.zeros((4, 4, 2)), np.zeros((2, 4))  # unit, drive, input
    for x, y in zip(np.asarray(xs), np.asarray(ys), strict=True):
        h = np.tanh(x @ w + h @ (Ring.mask * r))
        slope = 1 - h**2
        D = slope[:, None] * (Ring.mask * r).T
        each = near[:, :, None] * np.einsum("pk,kqi->pqi", D, each)
        each += np.einsum("pq,i->pqi", np.diag(slope), x)
        signal = 2 * (h - y) * np.cos(h) - (h - y) ** 2 * np.sin(h)
        grad += np.einsum("p,pqi->iq", signal, each)
    assert_tree_close(snap_oracle(model, (xs, ys), loss_fn, n).grads["w",], grad, RTOL)


def test_snap_with_a_given_position_graph() -> None:
    model, sequences = Ring(), data(STEPS, out=4)
    everywhere, nowhere = {0: np.ones((8, 8))}, {0: np.eye(8)}
    full = rtrl_oracle(model, sequences, loss_fn).grads
    found = snap_oracle(model, sequences, loss_fn, 2, position_graphs=everywhere).grads
    assert_tree_close(found, full, RTOL)
    coupled = d_rtrl_oracle(model, sequences, loss_fn, recurrence_scope="coupled").grads
    found = snap_oracle(model, sequences, loss_fn, 5, position_graphs=nowhere).grads
    assert_tree_close(found, coupled, RTOL)


def test_all_states_of_a_position_are_near_together() -> None:
    """A path that changes state on the way through a position counts positions, not states."""

    class Crossed(cells.Cell):
        n_hidden = 2

        def build(self) -> None:
            self.w = self.weight(0, self.n_in, self.n_hidden)
            self.r = self.weight(1, self.n_hidden, self.n_hidden)
            self.a, self.b = self.state(0), self.state(1)

        def update(self, x: Any) -> Any:
            a, b = self.a.value, self.b.value
            self.a.value = jnp.tanh(0.9 * b + mm(x, self.w.value))
            self.b.value = jnp.tanh(0.8 * a + mm(a, self.r.value))
            return self.a.value + jnp.sin(self.b.value)

    model, sequences = Crossed(), data(STEPS, out=2)
    full = rtrl_oracle(model, sequences, loss_fn).grads
    assert_tree_close(full, bptt(model, sequences, loss_fn)[1], RTOL)
    assert_tree_close(snap_oracle(model, sequences, loss_fn, 2).grads, full, RTOL)
    differs(snap_oracle(model, sequences, loss_fn, 1).grads, full)


# --- e-prop ----------------------------------------------------------------------------------


class LeakyReadout(brainstate.nn.Module):
    """The output is a leaky sum of what a cell puts out, kept in a state that is not hidden."""

    def __init__(self, cell: cells.Cell, kappa: float) -> None:
        super().__init__()
        self.cell, self.kappa = cell, kappa
        self.sum = brainstate.ShortTermState(jnp.zeros(cell.shape))

    def update(self, x: Any) -> Any:
        self.sum.value = self.kappa * self.sum.value + self.cell(x)
        return self.sum.value


@pytest.mark.parametrize("cell", [cells.Leaky, cells.TwoStates, cells.LSTM])
def test_e_prop_without_a_filter_is_d_rtrl(cell: type[cells.Cell]) -> None:
    model, sequences = Stack(cell()), data(STEPS, out=2)
    found = e_prop_oracle(model, sequences, loss_fn, 0.0).grads
    assert_tree_close(found, d_rtrl_oracle(model, sequences, loss_fn).grads, RTOL)
    identity = e_prop_oracle(model, sequences, loss_fn, 0.0, {0: np.eye(3)}).grads
    assert_tree_close(identity, found, RTOL)


def test_e_prop_is_bptt_with_a_leaky_readout() -> None:
    """The filter of the traces is that of the readout (Bellec et al., 2020)."""

    class Plain(cells.Leaky):
        """What is put out is the state: its derivative is the same at every step."""

        def update(self, x: Any) -> Any:
            return 0.7 * super().update(x)

    model, sequences = LeakyReadout(Plain(), 0.6), data(STEPS)
    _, reference = bptt(model, sequences, loss_fn)
    assert_tree_close(e_prop_oracle(model, sequences, loss_fn, 0.6).grads, reference, RTOL)
    differs(e_prop_oracle(model, sequences, loss_fn, 0.5).grads, reference)


@pytest.mark.parametrize("cell", [cells.LeakyOld, cells.LSTM])
def test_filtered_traces_are_filtered_signals(cell: type[cells.Cell]) -> None:
    """``sum_t l^t Mbar^t = sum_t (sum_s kappa^(s - t) l^s) M^t`` for ``s >= t``."""
    model, sequences, kappa = Stack(cell()), data(STEPS, out=2), 0.6
    exact = d_rtrl_oracle(model, sequences, loss_fn)
    (weight,) = [p for p in exact.grads if p[-1] == "w"]
    total = 0.0
    for (_, g), by_path in exact.influences.items():
        late: Any = 0.0
        for t in reversed(range(STEPS)):
            later = exact.steps[t + 1].e[g] if t + 1 < STEPS else 0.0
            late = kappa * late + exact.steps[t].l[g] + later
            total = total + np.tensordot(late, by_path[weight][t], axes=1)
    found = e_prop_oracle(model, sequences, loss_fn, kappa).grads
    assert_tree_close(found[weight], total, RTOL)
    differs(found[weight], exact.grads[weight])


class Linear(cells.TwoStates):
    """Outputs are linear in the old and the new values of both states."""

    def update(self, x: Any) -> Any:
        old = self.v.value
        super().update(x)
        return self.v.value + 2 * self.i.value - 0.7 * old


def test_feedback_takes_the_place_of_the_signal() -> None:
    model, (xs, ys), B = Linear(), data(STEPS), normal(3, 3, 3)

    def loss(out: Any, y: Any) -> Any:
        return jnp.sum(out * y)

    found = e_prop_oracle(model, (xs, ys), loss, 0.5, {0: B}).grads
    assert_tree_close(found, e_prop_oracle(model, (xs, ys @ B), loss, 0.5).grads, RTOL)
    differs(found, e_prop_oracle(model, (xs, ys), loss, 0.5).grads)


# --- three factors ---------------------------------------------------------------------------


def test_a_modulator_is_the_signal_of_a_linear_loss() -> None:
    model, (xs, m) = cells.Leaky(), data(STEPS)
    reference = d_rtrl_oracle(model, (xs, m), lambda out, m: jnp.sum(out * m)).grads
    found = three_factor_oracle(model, (xs, m), loss_fn, m).grads
    assert_tree_close(found, reference, RTOL)
    scalars = m[:, 0, 0]
    reference = d_rtrl_oracle(model, (xs, scalars), lambda out, m: jnp.sum(out) * m).grads
    assert_tree_close(three_factor_oracle(model, (xs, m), loss_fn, scalars).grads, reference, RTOL)


def test_a_modulator_holds_at_every_state_and_leaves_out_the_old_ones() -> None:
    model, (xs, ys), m = Stack(Linear()), data(STEPS, out=2), normal(5, STEPS)
    found = three_factor_oracle(model, (xs, ys), loss_fn, m)
    exact = d_rtrl_oracle(model, (xs, ys), loss_fn)
    ((_, by_path),) = exact.influences.items()
    weight = ("cells", 0, "w")
    by_hand = np.einsum("t,tkio->io", m, by_path[weight])
    reference = {weight: by_hand, ("readout",): exact.grads["readout",]}
    assert_tree_close(found.grads, reference, RTOL)


# --- errors ----------------------------------------------------------------------------------


def test_wrong_arguments_are_refused() -> None:
    model, sequences = cells.Leaky(), data(2)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        snap_oracle(model, sequences, loss_fn, 0)
    with pytest.raises(ValueError, match=r"position_graphs\[0\] must have shape \(6, 6\)"):
        snap_oracle(model, sequences, loss_fn, 2, position_graphs={0: np.eye(3)})
    with pytest.raises(ValueError, match=r"feedback\[0\] must have shape \(3, 3\), got \(2, 3\)"):
        e_prop_oracle(model, sequences, loss_fn, 0.5, {0: np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"modulators must have shape \(2, \.\.\.\), got \(3,\)"):
        three_factor_oracle(model, sequences, loss_fn, np.ones(3))
    with pytest.raises(ValueError, match="recurrence_scope must be one of"):
        e_prop_oracle(model, sequences, loss_fn, 0.5, recurrence_scope="full")  # type: ignore[arg-type]
