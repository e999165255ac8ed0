# SPDX-License-Identifier: Apache-2.0
"""Matrices by their bands do what whole ones do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.ops.traces.bands import Bands, bands_of, bands_of_products, identity, product

STATES = 9


def shift() -> np.ndarray:
    known = np.zeros((STATES, STATES), bool)
    known[0, 0] = known[1, 0] = True
    known[range(2, STATES), range(1, STATES - 1)] = True
    return known


def ring(read: bool) -> np.ndarray:
    known = np.eye(STATES, dtype=bool)
    known[:, 0] = True
    known[0, :] |= read
    return known


PATTERNS = {"shift": shift(), "ring": ring(False), "ring that is read": ring(True)}


def drawn(known: np.ndarray, seed: int = 0) -> tuple[Bands, jax.Array]:
    """Bands with random entries, and the whole matrix [S, S, 3]."""
    bands = bands_of(tuple(map(tuple, known)))
    assert bands is not None
    draw = np.random.default_rng(seed).normal(size=(STATES, STATES, 3)) * known[..., None]
    values = (jnp.asarray(draw[tuple(zip(*band.entries, strict=True))]) for band in bands)
    return Bands(tuple(values), bands, STATES), jnp.asarray(draw)


@pytest.mark.parametrize("name", PATTERNS)
def test_products_with_vectors(name: str) -> None:
    matrix, whole = drawn(PATTERNS[name])
    vector = jnp.asarray(np.random.default_rng(1).normal(size=(STATES, 3)))
    np.testing.assert_allclose(
        matrix.times(vector), jnp.einsum("ij...,j...->i...", whole, vector), atol=1e-6
    )
    np.testing.assert_allclose(
        matrix.turned.times(vector), jnp.einsum("ji...,j...->i...", whole, vector), atol=1e-6
    )
    entries = sorted(entry for band in matrix.bands for entry in band.entries)
    assert entries == sorted(zip(*np.nonzero(PATTERNS[name]), strict=True))
    assert len(matrix.bands) <= 3


@pytest.mark.parametrize("states", [(0,), (0, 1, 2, 3, 4, 6, 7, 8)])
@pytest.mark.parametrize("name", PATTERNS)
def test_some_of_the_states(name: str, states: tuple[int, ...]) -> None:
    matrix, whole = drawn(PATTERNS[name])
    several = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), matrix)
    found: Any = several.among(states, 1)
    if isinstance(found, Bands):
        second = jax.tree.map(lambda v: v[1], found)
        eye = jnp.eye(len(states))[..., None] * jnp.ones(3)
        found = jax.vmap(second.times, 1, 1)(eye)
    else:
        found = found[1]
    np.testing.assert_allclose(found, 2 * whole[np.ix_(states, states)], rtol=1e-6)


def test_products_of_matrices() -> None:
    """Of a ring they are made of its bands again; of a shift, of too many entries."""
    a, whole_a = drawn(ring(False))
    b, whole_b = drawn(ring(False), seed=1)
    bands = bands_of_products(a.bands, STATES)
    assert bands == a.bands
    found = product(a, b, bands)
    eye = jnp.eye(STATES)[..., None] * jnp.ones(3)
    expected = jnp.einsum("ij...,jk...->ik...", whole_a, whole_b)
    np.testing.assert_allclose(jax.vmap(found.times, 1, 1)(eye), expected, atol=1e-6)
    one = identity(bands, a, a.values[0].dtype)
    np.testing.assert_allclose(jax.vmap(one.times, 1, 1)(eye), eye)
    shifted, _ = drawn(shift())
    assert bands_of_products(shifted.bands, STATES) is None


def test_what_is_kept_whole() -> None:
    every = ((True,) * 6,) * 6
    scattered = np.random.default_rng(0).random((40, 40)) < 0.2
    assert bands_of(every) is None and bands_of(tuple(map(tuple, scattered))) is None
    line = shift()
    (members,) = {bands_of(tuple(map(tuple, line)), (1, STATES - 1))}
    assert members is not None and sorted(band.length for band in members) == [1, 1, STATES - 2]
