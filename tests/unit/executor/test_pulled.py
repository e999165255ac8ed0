# SPDX-License-Identifier: Apache-2.0
"""A step as a function of signals is its D and f, transposed."""

from __future__ import annotations

from dataclasses import replace

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.ops.traces.bands import Bands


class Line(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drive = bt.nn.Linear(3, 4, key=1)

    def init_state(self, batch_size: int = 2, **kwargs: object) -> None:
        self.h = brainstate.HiddenState(jnp.full((batch_size, 4), 0.3))
        self.line = brainstate.ShortTermState(jnp.ones((6, batch_size, 4)))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = 0.9 * jnp.tanh(self.h.value) + self.drive(x) + 0.1 * self.line.value[-1]
        self.line.value = jnp.concatenate([jnp.sin(self.h.value)[None], self.line.value[:-1]])
        return self.line.value[-1]


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_signals_pulled_back_without_the_matrices(scope: str) -> None:
    learner = bt.compile(Line(), "d_rtrl", jnp.ones((2, 3)), batch_size=2, recurrence_scope=scope)
    step = learner.rule.executor
    draw = np.random.default_rng(0).normal
    values = [jnp.asarray(draw(size=v.aval.shape), v.aval.dtype) for v in step.inputs_of_jacobians]
    found = step.jacobians_at(values)
    plain = replace(step, banded=False).jacobians_at(values)
    (matrix,), (whole,) = found.transition, plain.transition
    assert isinstance(matrix, Bands) and matrix.pulled is not None and not isinstance(whole, Bands)
    signal = jnp.asarray(draw(size=whole.shape[1:]), whole.dtype)
    olds, ys = matrix.pulled(signal)
    np.testing.assert_allclose(olds, jnp.einsum("ij...,i...->j...", whole, signal), atol=1e-6)
    np.testing.assert_allclose(matrix.turned.times(signal), olds, atol=1e-6)
    np.testing.assert_allclose(found.f[0], plain.f[0], atol=1e-6)
    np.testing.assert_allclose(ys[0], (plain.f[0] * signal).sum(0), atol=1e-6)
    first = replace(matrix.pulled, past=jnp.zeros((), bool))
    assert not first(signal)[0].any() and bool((first(signal)[1][0] == ys[0]).all())
