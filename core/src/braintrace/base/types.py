# SPDX-License-Identifier: Apache-2.0
"""States, their paths, and their arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

Path = tuple[Any, ...]
State = brainstate.State[Any]


def show_path(path: Path) -> str:
    """A state's path as every text writes it: ``rnn.layers[0].weight``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def restore_values(values: Mapping[State, Any]) -> None:
    """Give states earlier values of theirs, of another structure, too."""
    for state, value in values.items():
        try:
            state.restore_value(value)
        except ValueError:  # refused to a state whose structure was changed; an assignment is not
            state.value = value


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
