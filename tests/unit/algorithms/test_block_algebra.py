# SPDX-License-Identifier: Apache-2.0
"""Recursions of a block against loops over its steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.algorithms.block_algebra import accumulate, apply, compose, meet, suffix_products
from braintrace.ops.traces.base import UNROLL_STATES

K, V = 3, 2
MANY = UNROLL_STATES + 1


def drawn(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("states", [1, 2, MANY])
def test_accumulated_signals_run_backward(states: int, old: bool) -> None:
    D, signal = drawn(K, states, states, V), drawn(K, states, V)
    e = 2 * drawn(K, states, V) if old else None
    found, first = accumulate(jnp.asarray(D), jnp.asarray(signal), e)
    c = np.zeros((states, V))
    for t in reversed(range(K)):
        a = signal[t] + c
        np.testing.assert_allclose(found[t], a, rtol=1e-10)
        c = np.einsum("ijv,iv->jv", D[t], a) + (0 if e is None else e[t])
    np.testing.assert_allclose(first, c, rtol=1e-10)


def test_without_a_transition_old_signals_are_shifted() -> None:
    signal, e = jnp.arange(3.0)[:, None, None], 10 * jnp.arange(1.0, 4.0)[:, None, None]
    found, first = accumulate(None, signal, e)
    assert found[:, 0, 0].tolist() == [20.0, 31.0, 2.0] and first.tolist() == [[10.0]]
    assert accumulate(None, signal, None) == (signal, None)


def test_entries_that_are_structurally_zero_are_left_out() -> None:
    D, signal = drawn(K, 2, 2, V), drawn(K, 2, V)
    passing = ((True, False), (True, True))
    cut = D * np.array(passing)[None, :, :, None]
    found = accumulate(jnp.asarray(D), jnp.asarray(signal), None, passing)
    expected = accumulate(jnp.asarray(cut), jnp.asarray(signal), None)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("states", [1, 3])
def test_products_of_what_comes_after(states: int) -> None:
    D = drawn(K, states, states, V)
    products, whole = suffix_products(jnp.asarray(D))
    decays = jnp.array([0.25, 0.5, 1.0])
    filtered, ahead = suffix_products(jnp.asarray(D), decays)
    for v in range(V):
        P, Q = np.eye(states), np.zeros((states, states))
        for t in reversed(range(K)):
            Q = Q + decays[t] * np.eye(states)
            np.testing.assert_allclose(products[t, ..., v], P, rtol=1e-10)
            np.testing.assert_allclose(filtered[t, ..., v], Q, rtol=1e-10)
            P, Q = P @ D[t, ..., v], Q @ D[t, ..., v]
        np.testing.assert_allclose(whole[..., v], P, rtol=1e-10)
        np.testing.assert_allclose(ahead[..., v], Q, rtol=1e-10)


@pytest.mark.parametrize("states", [1, 2, MANY])
def test_products_position_by_position(states: int) -> None:
    a, b, v = drawn(states, states, V), drawn(states, states, V) + 1, drawn(states, V)
    by_hand = np.einsum("ijv,jv->iv", a, v)
    np.testing.assert_allclose(apply(jnp.asarray(a), jnp.asarray(v)), by_hand, rtol=1e-10)
    found = compose(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, np.einsum("ijv,jkv->ikv", a, b), rtol=1e-10)


def test_rows_and_states_without_an_entry_are_zero() -> None:
    ones = jnp.ones((2, 2, V))
    found = apply(ones, ones[0], ((False, False), (True, False)))
    assert found.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    f = jnp.ones((K, 2, V))
    assert meet(f, 3 * f, (False, True)).tolist() == [[3.0] * V] * K
    assert not meet(f, f, (False, False)).any()


@pytest.mark.parametrize("states", [2, MANY])
def test_factors_meet_signals(states: int) -> None:
    f, signal = drawn(K, states, V), 1 + drawn(K, states, V)
    found = meet(jnp.asarray(f), jnp.asarray(signal))
    np.testing.assert_allclose(found, (f * signal).sum(1), rtol=1e-10)
