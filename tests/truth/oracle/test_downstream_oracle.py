# SPDX-License-Identifier: Apache-2.0
"""The oracle with uniform states, without any learner, against backpropagation through time."""

from __future__ import annotations

import itertools
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
    e_prop_oracle,
    uoro_oracle,
    window_oracle,
)
from braintrace_testing.filters import traced_states
from braintrace_testing.uoro import rank_one

from . import cells
from .cells import data, loss_fn, mm, normal

RTOL = 1e-10
STEPS = 5


class Above(cells.Cell):
    """A leaky layer, or two of them one after the other."""

    n_in, n_hidden = 3, 2
    chain = False

    def build(self) -> None:
        self.w, self.b = self.weight(0, self.n_in, 2), self.weight(1, 2)
        self.v = self.state(0)
        if self.chain:
            self.u, self.a = self.weight(2, 2, 2), self.state(1)

    def update(self, x: Any) -> Any:
        y = mm(x, self.w.value) + self.b.value
        if self.chain:
            self.a.value = 0.5 * self.a.value + y
            y = mm(self.a.value, self.u.value)
        self.v.value = 0.9 * self.v.value + 0.2 * y
        return self.v.value


class Chained(Above):
    chain = True


ABOVE = {Above: [("layers", 1, "v")], Chained: [("layers", 1, "a"), ("layers", 1, "v")]}


class Below(cells.Cell):
    """One state with a gate, read after a nonlinearity; ``cut`` holds its recurrent input."""

    recurs = False

    def build(self) -> None:
        self.w = self.weight(0, self.n_in + self.n_hidden, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: Any) -> Any:
        h = self.recurrent(self.h.value) if self.recurs else jnp.zeros_like(self.h.value)
        y = mm(jnp.concatenate([x, jnp.tanh(h)], -1), self.w.value)
        self.h.value = jax.nn.sigmoid(y) * self.h.value + y
        return jnp.tanh(self.h.value)


class Recurrent(Below):
    recurs = True


def network(below: Any, above: Any, cut: bool = False) -> Any:
    return brainstate.nn.Sequential(below(cut=cut), above(seed=1))


@pytest.mark.parametrize("above", ABOVE)
@pytest.mark.parametrize("below", [Below, Recurrent])
def test_below_leaks_it_is_bptt_without_recurrent_input(below: Any, above: Any) -> None:
    sequences = data(STEPS, out=2)
    found = d_rtrl_oracle(network(below, above), sequences, loss_fn, uniform=ABOVE[above])
    losses, exact = bptt(network(below, above, cut=True), sequences, loss_fn)
    assert_tree_close(found.grads, exact, RTOL)
    assert_tree_close(found.loss, losses, RTOL)
    published = d_rtrl_oracle(network(below, above), sequences, loss_fn)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(published.grads, exact, 1e-2)


def test_windows_take_the_whole_influence() -> None:
    sequences = data(STEPS, out=2)
    rule = partial(d_rtrl_oracle, uniform=ABOVE[Chained])
    found = window_oracle(rule, network(Below, Chained), sequences, loss_fn, 2)
    assert_tree_close(found.grads, bptt(network(Below, Chained), sequences, loss_fn)[1], RTOL)
    assert not found.steps and found.names[-1] == ""


def test_one_step_is_the_ordinary_gradient() -> None:
    sequences = data(1, out=2)
    model = network(Recurrent, Chained)
    found = d_rtrl_oracle(model, sequences, loss_fn, uniform=ABOVE[Chained])
    assert_tree_close(found.grads, bptt(model, sequences, loss_fn)[1], RTOL)


def test_kappa_takes_the_place_of_the_leak() -> None:
    """For what is below; the readout's own weights keep the leak that they have."""
    model, sequences = network(Below, Above), data(STEPS, out=2)
    rule = partial(e_prop_oracle, model, sequences, loss_fn, uniform=ABOVE[Above])
    exact = bptt(model, sequences, loss_fn)[1]
    assert_tree_close(rule(0.9).grads, exact, RTOL)
    other = rule(0.3).grads
    top = {path: grad for path, grad in exact.items() if path[1] == 1}
    assert_tree_close({path: other[path] for path in top}, top, RTOL)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(other, exact, 1e-2)


def test_what_is_not_uniform_is_refused() -> None:
    model, sequences = network(Below, Above), data(STEPS, out=2)
    for path, why in ((("layers", 0, "h"), "is not uniform"), (("q",), "must name hidden states")):
        with pytest.raises(ValueError, match=why):
            d_rtrl_oracle(model, sequences, loss_fn, uniform=[path])


def test_a_matrix_that_changes_nothing_leaves_the_rule_as_it_is() -> None:
    """Which keeps the influence on uniform states: what filters give is the same."""
    sequences = data(STEPS, out=2)
    for above in ABOVE:
        model = network(Recurrent, above)
        for scope in ("diagonal", "coupled"):
            rule = partial(e_prop_oracle, model, sequences, loss_fn, uniform=ABOVE[above])
            found = rule(None, {0: np.eye(3)}, recurrence_scope=scope).grads
            exact = d_rtrl_oracle(
                model, sequences, loss_fn, uniform=ABOVE[above], recurrence_scope=scope
            )
            assert_tree_close(found, exact.grads, RTOL)


class One(Below):
    n_in = n_hidden = 1


@pytest.mark.parametrize("chain", [False, True])
def test_the_mean_of_uoro_over_all_signs_is_exact(chain: bool) -> None:
    class Narrow(Above):
        n_in = 1

    Narrow.chain = chain
    model = brainstate.nn.Sequential(One(batch=1), Narrow(batch=1, seed=1))
    named, steps = (ABOVE[Chained], 2) if chain else (ABOVE[Above], 3)
    sequences = normal(0, steps, 1, 1), normal(1, steps, 1, 2)
    traced = traced_states(model, sequences, loss_fn, uniform=named, groups=None, scope="full")
    every = itertools.product((-1, 1), repeat=6)  # of each state at each step
    signs = [np.reshape(nu, (steps, -1, 1, 1)) for nu in every]
    mean = np.mean([rank_one(traced, lambda _, nu=nu: nu) for nu in signs], axis=0)
    exact = bptt(model, sequences, loss_fn)[1]
    assert_tree_close(traced.result(mean).grads, exact, RTOL)
    one = uoro_oracle(model, sequences, loss_fn, {0: signs[0]}, uniform=named).grads
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(one, exact, 1e-2)
