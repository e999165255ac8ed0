# SPDX-License-Identifier: Apache-2.0
"""How large arrays are, and in which dtypes they are added up."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a pytree, or of arrays of these types."""
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(tree))


def sum_dtype(dtype: Any) -> Any:
    """Float32 at least: in half precision a sum of many steps stops growing, and 0.999 is 1."""
    half = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.dtype(jnp.float32) if half else dtype


def start_of_sum(like: Any) -> jax.Array:
    """Zeros to add many arrays like this one to."""
    return jnp.zeros(jnp.shape(like), sum_dtype(jnp.result_type(like)))
