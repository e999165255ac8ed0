# SPDX-License-Identifier: Apache-2.0
"""UORO's estimate: its mean, its balance, and its random numbers."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import UORORule
from braintrace.algorithms.uoro import RankOne, _balanced
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import HIDDEN, Recurrent, block_of, by_loops, part, ready


def test_the_mean_over_keys_is_rtrl() -> None:
    executor, operands = ready(Recurrent(), bt.UORO)
    rule, block, keys = UORORule(executor), block_of(executor, 3), 4000
    s, theta, _ = rule.init()
    bits = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(1), keys))

    def found(key: jax.Array) -> jax.Array:
        return rule.solve((s, theta, key), block, operands)[0]["weight"]

    estimates = np.asarray(jax.vmap(found)(bits))
    expected, _, _ = by_loops(block)
    error = estimates.std(0) / np.sqrt(keys)
    assert (np.abs(estimates.mean(0) - expected) < 5 * error).all()
    assert error.max() < 0.5 * np.abs(expected).max()


def test_blocks_go_on_with_the_random_numbers() -> None:
    executor, operands = ready(Recurrent(), bt.UORO)
    rule, block = UORORule(executor, None, 3), block_of(executor)
    whole, traces = rule.advance(None, block, operands)
    first, half = rule.advance(rule.init(), part(block, 0, 2), operands)
    second, end = rule.advance(half, part(block, 2, None), operands)
    assert_tree_close(first[0]["weight"] + second[0]["weight"], whole[0]["weight"], 1e-10)
    assert_tree_close(end, traces, 1e-10)
    assert_tree_close(rule.update(None, block, operands), traces, 1e-12)
    other = UORORule(executor, None, 4).solve(None, block, operands)
    assert not jnp.allclose(other[0]["weight"], whole[0]["weight"])


def test_a_signal_at_the_start_of_a_window_meets_the_product() -> None:
    executor, operands = ready(Recurrent(), bt.UORO)
    rule = UORORule(executor)
    traces = rule.update(None, block_of(executor), operands)
    held = RankOne(*traces)
    signal = np.random.default_rng(2).normal(size=held.s[0].shape)
    (found,) = rule.solve_at_start(traces, (signal,), operands)
    met = (signal * held.s[0]).sum(0)  # by example
    expected = np.einsum("b,bio->io", met, held.theta[0]["weight"][0])
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-10)
    seen = rule.of_link(traces, 0)
    assert (
        seen["s"].shape == (2, HIDDEN) and seen["weight"].shape == held.theta[0]["weight"][0].shape
    )


def test_both_factors_are_made_equally_large() -> None:
    s = jnp.array([[3.0, 0.0, 3.0], [4.0, 0.0, 4.0]])
    rho, inverse = _balanced(jnp.array([20.0, 1.0, 0.0]), s)
    assert rho.tolist() == [2.0, 0.0, 0.0] and inverse.tolist() == [0.5, 0.0, 0.0]


def test_near_jacobians_are_not_enough() -> None:
    with pytest.raises(ValueError, match="UORORule needs whole Jacobians"):
        UORORule(ready()[0])


def test_a_model_of_uniform_states_alone_has_nothing_to_estimate() -> None:
    """Its credit is in filters, and exact; blocks of steps hold nothing."""
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, zoo.IN)))

    def gradient(algorithm: str) -> Any:
        brainstate.random.seed(0)
        learner = bt.compile(zoo.Leaky(), algorithm, xs[0], batch_size=2, vjp_method="single-step")
        return learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), reduction="sum")

    assert_tree_close(gradient("uoro"), gradient("d_rtrl"), 1e-12)
