# SPDX-License-Identifier: Apache-2.0
"""The oracle of pp_prop against reverse mode, a limit, and its definition written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.ops.primitive import register_primitive
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle, pp_prop_oracle

from . import cells
from .cells import Stack, data, loss_fn, normal, param, second

RTOL = 1e-10
DECAYS = (0.7, 0.6)

curved_p = register_primitive("oracle_curved", lambda x, w: jnp.tanh(x @ w), batched=True)


class Curved(brainstate.nn.Module):
    """An operation that is not linear in its input; the output reads the old state."""

    def __init__(self) -> None:
        super().__init__()
        self.w = param(1, 2, 3)
        self.h = brainstate.HiddenState(normal(2, 2, 3))

    def update(self, x: Any) -> Any:
        old = self.h.value
        self.h.value = jnp.sin(0.8 * old) + curved_p.bind(x, self.w.value)
        return self.h.value + old**2


@pytest.mark.parametrize(
    "make",
    [
        cells.GRU,
        cells.LeakyOld,
        cells.Processed,
        cells.Partial,
        Curved,
        lambda: Stack(cells.LSTM(), second(cells.LIF)),
    ],
)
def test_one_step_is_the_ordinary_gradient(make: Callable[[], Any]) -> None:
    model = make()
    sequences = data(1, out=2 if isinstance(model, Stack) else 3)
    _, grads = bptt(model, sequences, loss_fn)
    assert_tree_close(pp_prop_oracle(model, sequences, loss_fn, *DECAYS).grads, grads, RTOL)


@pytest.mark.parametrize("make", [cells.Leaky, cells.LeakyOld, cells.TwoStates])
def test_for_a_constant_input_and_long_memory_it_is_d_rtrl(make: type[cells.Cell]) -> None:
    """A sum of products with one constant factor is a product of sums, up to the mean of one."""
    model, (xs, targets) = Stack(make()), data(6, out=2)
    sequences = (jnp.broadcast_to(xs[0], xs.shape), targets)
    exact = d_rtrl_oracle(model, sequences, loss_fn)
    found = pp_prop_oracle(model, sequences, loss_fn, 1 - 1e-6)
    assert_tree_close(found.grads["cells", 0, "w"], exact.grads["cells", 0, "w"], 1e-4)
    short = pp_prop_oracle(model, sequences, loss_fn, 0.5)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(short.grads, exact.grads, 1e-2)


def test_the_definition_by_hand() -> None:
    """``h^t = sin(0.8 h^{t-1}) + tanh(x W)``, ``out = h^t + (h^{t-1})^2``, position by position."""
    a_x, a_f = DECAYS
    model, (xs, ys) = Curved(), data(5, out=3)
    found = pp_prop_oracle(model, (xs, ys), lambda out, y: jnp.sum(out * y), a_x, a_f)
    w, h = (np.asarray(v) for v in (model.w.value, model.h.value))
    grad, eps_x, eps_f, before = 0.0, np.zeros((2, 2)), np.zeros((2, 3)), 0.0
    for t, (x, y) in enumerate(zip(np.asarray(xs), np.asarray(ys), strict=True)):
        d, late = 0.8 * np.cos(0.8 * h), y * 2 * h
        h = np.sin(0.8 * h) + np.tanh(x @ w)
        eps_x = a_x * eps_x + x
        eps_f = a_f * d * eps_f + (1 - a_f)  # dh/dy = 1
        slope = 1 - np.tanh(eps_x @ w) ** 2
        influence = eps_x[:, :, None] * (slope * eps_f / (1 - a_f ** (t + 1)))[:, None, :]
        grad = grad + (y[:, None, :] * influence + late[:, None, :] * before).sum(0)
        before = influence
    assert_tree_close(found.grads["w",], grad, RTOL)


def test_a_pair_of_decays_and_one() -> None:
    model, sequences = cells.LSTM(), data(4)
    both = pp_prop_oracle(model, sequences, loss_fn, 0.6, 0.6)
    assert_tree_close(pp_prop_oracle(model, sequences, loss_fn, 0.6).grads, both.grads, 1e-15)
    other = pp_prop_oracle(model, sequences, loss_fn, 0.6, 0.3)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(other.grads, both.grads, 1e-2)


def test_the_derivative_at_another_input() -> None:
    model, sequences = Curved(), data(2)
    for now in pp_prop_oracle(model, sequences, loss_fn, 0.5).steps:
        ((r, x),) = now.x.items()
        np.testing.assert_allclose(now.dY_at[r](x), now.dY[r], rtol=1e-14)
        assert np.abs(now.dY_at[r](2 * x) - 2 * now.dY[r]).max() > 1e-3
