# SPDX-License-Identifier: Apache-2.0
"""Entries of leaves as real numbers: a complex one has two, and gradients are JAX's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.executor.leaves import StateLeaf


@pytest.mark.parametrize(("dtype", "size"), [("float32", 6), ("complex64", 12)])
def test_tangents_are_a_basis_and_cotangents_pick_them(dtype: str, size: int) -> None:
    leaf = StateLeaf(0, ("w",), 0, jax.ShapeDtypeStruct((2, 3), jnp.dtype(dtype)))
    assert leaf.size == size and leaf.is_complex == (dtype == "complex64")
    basis = [leaf.tangent(jnp.int32(k)) for k in range(size)]
    for k in range(size):
        pairs = [float(jnp.real(leaf.cotangent(jnp.int32(k)) * tangent).sum()) for tangent in basis]
        np.testing.assert_array_equal(pairs, np.eye(size)[k])
    value = sum(k * tangent for k, tangent in enumerate(basis))
    np.testing.assert_array_equal(leaf.joined(jnp.arange(size)[None])[0], value)


def test_a_gradient_is_that_of_jax() -> None:
    leaf = StateLeaf(0, ("w",), 0, jax.ShapeDtypeStruct((2,), jnp.dtype("complex64")))
    at, c = jnp.asarray([1 + 2j, 0.5 - 1j], "complex64"), jnp.asarray([2 - 1j, 1j], "complex64")

    def loss(w: Any) -> Any:
        return jnp.real(c * w**2).sum()

    _, push = jax.linearize(loss, at)
    entries = jnp.stack([push(leaf.tangent(jnp.int32(k))) for k in range(leaf.size)])
    np.testing.assert_allclose(leaf.gradient(entries), jax.grad(loss)(at), rtol=1e-6)
    np.testing.assert_allclose(leaf.entries(jax.grad(loss)(at)), entries, rtol=1e-6)
