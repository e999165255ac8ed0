# SPDX-License-Identifier: Apache-2.0
"""Dtypes of sums, and linear functions that take cotangents in half precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.base.precision import (
    pulled_in,
    start_of_sum,
    sum_dtype,
    wide_dtype,
    widened,
    widened_dtype,
)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"),
     ("float64", "float64"), ("int8", "int8")],
)  # fmt: skip
def test_sums_are_in_more_than_half_precision(dtype: str, expected: str) -> None:
    assert jnp.dtype(sum_dtype(dtype)) == expected
    start = start_of_sum(jnp.ones((2, 3), dtype))
    assert (start.shape, start.dtype) == ((2, 3), expected) and not start.any()


def test_the_widest_real_dtype() -> None:
    assert wide_dtype() == wide_dtype("bfloat16", "int32", "float16") == "float32"
    assert wide_dtype("bfloat16", "complex128") == wide_dtype("float64") == "float64"
    found = [widened_dtype(jnp.dtype(d), jnp.dtype("float64")) for d in ("int8", "complex64")]
    assert found == ["int8", "complex128"]


def test_arrays_are_widened_and_others_stay() -> None:
    key, wide = jax.random.key(0), jnp.ones(2, "float64")
    tree = [jnp.ones(2, "bfloat16"), jnp.arange(2), wide, key, None]
    found = widened(tree, jnp.dtype("float32"))
    assert found[0].dtype == "float32" and found[1] is tree[1]
    assert found[2] is wide and found[3] is key


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 3e7, 1e30])
def test_a_cotangent_out_of_the_range_of_half_precision_is_scaled(size: float) -> None:
    """The transpose of a conversion to float16 and a factor of 3."""
    weights = jnp.arange(1.0, 5.0, dtype="float32")
    y, pull = jax.vjp(lambda w: jnp.float16(3) * w.astype("float16"), weights)
    cotangent = jnp.array([1.0, -0.5, 0.0, 0.25], "float32") * size

    def found(bar: Any) -> Any:
        return pulled_in(y.dtype, lambda bar: pull(bar)[0], bar)

    np.testing.assert_allclose(jax.jit(found)(cotangent), 3 * cotangent, rtol=1e-3)
    zero = found(jnp.zeros(4, "float32"))
    assert zero.dtype == "float32" and not zero.any()
    assert jnp.isnan(found(cotangent.at[0].set(jnp.nan))[0])


def test_a_cotangent_of_the_right_width_is_passed_on() -> None:
    seen: list[Any] = []
    for dtype, own in (("float32", "float32"), ("float32", "float64"), ("bfloat16", "bfloat16")):
        pulled_in(jnp.dtype(dtype), seen.append, jnp.full(1, 1e30, own))
        assert seen[-1].dtype == dtype and float(seen[-1][0]) == float(jnp.asarray(1e30, dtype))
