# SPDX-License-Identifier: Apache-2.0
"""Which dtype a sum, a trace or a filter has, and derivatives in half precision.

In half precision a sum of many steps stops growing, 0.999 is 1, and float16 ends at 65504. What is
added up over steps is therefore held in float32 at least, and in a dtype that is no narrower than
what it is made from and what it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def sum_dtype(dtype: Any) -> Any:
    """The dtype of a sum: that of its terms, but float32 at least."""
    return widened_dtype(dtype, jnp.dtype(jnp.float32))


def start_of_sum(like: Any) -> jax.Array:
    """Zeros to add many arrays like this one to."""
    return jnp.zeros(jnp.shape(like), sum_dtype(jnp.result_type(like)))


def wide_dtype(*dtypes: Any) -> Any:
    """The widest real dtype of some, the parts of complex ones included; float32 at least."""
    real = (jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact))
    return max([jnp.dtype(jnp.float32), *real], key=lambda dtype: dtype.itemsize)


def widened_dtype(dtype: Any, wide: Any) -> Any:
    """``dtype``, or what takes its place where it is narrower than the real dtype ``wide``."""
    if not jnp.issubdtype(dtype, jnp.inexact) or _width(dtype) >= wide.itemsize:
        return dtype
    return jnp.promote_types(dtype, wide) if jnp.issubdtype(dtype, jnp.complexfloating) else wide


def widened(tree: Any, wide: Any) -> Any:
    """Arrays of a pytree, those that are narrower than ``wide`` in that dtype."""

    def one(leaf: Any) -> Any:
        dtype = widened_dtype(own := jnp.result_type(leaf), wide)
        return leaf if dtype == own else jnp.asarray(leaf, dtype)

    return jax.tree.map(one, tree)


def pulled_in(dtype: Any, pull: Callable[[jax.Array], Any], cotangent: jax.Array) -> Any:
    """``pull(cotangent)`` for a linear function that takes cotangents of another dtype.

    Where that is one of half precision, the cotangent is brought close to 1 by a power of two,
    which the results are multiplied by, so that none is lost at either end of the range.
    """
    if _width(dtype) >= min(_width(cotangent.dtype), 4):
        return pull(cotangent.astype(dtype))
    largest = jnp.abs(cotangent).max(initial=0)
    usual = (largest > 0) & jnp.isfinite(largest)
    scale = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(jnp.where(usual, largest, 0.5))[1])
    found = pull((cotangent / scale).astype(dtype))
    return jax.tree.map(lambda leaf: leaf * scale, widened(found, scale.dtype))


def _width(dtype: Any) -> int:
    """Bytes of a real number of a dtype."""
    return int(jnp.finfo(dtype).dtype.itemsize)
