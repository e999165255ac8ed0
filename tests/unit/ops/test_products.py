# SPDX-License-Identifier: Apache-2.0
"""A sum of outer products does not depend on which array comes first."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from braintrace.ops.products import sum_of_outer


@pytest.mark.parametrize("columns", [(7, 2), (2, 7), (3, 3), (2, 1)])
def test_it_is_the_sum_over_rows(columns: tuple[int, int]) -> None:
    x, y = (np.random.default_rng(n).normal(size=(5, n)) for n in columns)
    expected = sum(np.outer(a, b) for a, b in zip(x, y, strict=True))
    np.testing.assert_allclose(jax.jit(sum_of_outer)(x, y), expected, rtol=1e-12)
    found = jax.vmap(sum_of_outer)(np.stack([x, x]), np.stack([y, y]))
    np.testing.assert_allclose(found[1], expected, rtol=1e-12)


@pytest.mark.parametrize("columns", [(32, 40), (4, 40), (40, 4)])
def test_the_first_array_is_turned_before_the_product(columns: tuple[int, int]) -> None:
    """XLA contracts it along its rows, and does not write it back."""
    x, y = (np.random.default_rng(n).normal(size=(64, n)) for n in columns)
    compiled = jax.jit(sum_of_outer).lower(x, y).compile()
    assert re.search(r"dot\(.*lhs_contracting_dims=\{1\}", compiled.as_text())
    np.testing.assert_allclose(compiled(x, y), x.T @ y, rtol=1e-12)
    assert "optimization_barrier" not in str(jax.make_jaxpr(sum_of_outer)(x[:8], x[:8]))


def test_the_narrow_array_comes_first_in_the_compiled_product() -> None:
    """XLA does not write it back."""
    x, y = np.ones((64, 32), "float32"), np.ones((64, 4), "float32")
    lowered = jax.jit(sum_of_outer).lower(x, y).compile().as_text()
    assert "f32[4,32]" in lowered
