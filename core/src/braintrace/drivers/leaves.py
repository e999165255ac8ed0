# SPDX-License-Identifier: Apache-2.0
"""Leaves of sequences and states: their common length, and writing them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base.types import State


def end_of_sum(total: jax.Array, like: Any, scale: Any) -> jax.Array:
    """A sum of gradients, scaled, in the dtype of what it is the gradient of."""
    return (total * scale).astype(jnp.result_type(like))


def common_length(sequences: tuple[Any, ...]) -> int:
    """The common length T of sequences.

    Raises
    ------
    ValueError
        When there is none, or it is zero.
    """
    leaves = jax.tree_util.tree_leaves_with_path(sequences)
    if not leaves:
        raise ValueError("at least one sequence is needed, for example inputs [T, ...]")
    lengths = {}
    for path, leaf in leaves:
        name = f"sequences{jax.tree_util.keystr(path)}"
        if (np.isscalar(leaf) and not isinstance(leaf, str | bytes)) or getattr(
            leaf, "shape", 0
        ) == ():
            raise ValueError(f"{name} is a scalar; expected an array [T, ...]")
        if not isinstance(leaf, np.ndarray | jax.Array):
            raise TypeError(f"{name} is a {type(leaf).__name__}; expected an array [T, ...]")
        lengths[name] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all sequences must have one length T; got {lengths}")
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise ValueError("the sequences have length zero; at least one step is needed")
    return steps


def flat_states(states: Sequence[State]) -> list[Any]:
    """Leaves of the values of several states."""
    return [leaf for state in states for leaf in jax.tree.leaves(state.value)]


def write_states(states: Sequence[State], leaves: Sequence[Any], skip: Sequence[State]) -> None:
    """Write leaves back to their states, except those in ``skip``."""
    start = 0
    for state in states:
        old, treedef = jax.tree.flatten(state.value)
        if not any(state is other for other in skip):
            state.value = jax.tree.unflatten(treedef, leaves[start : start + len(old)])
        start += len(old)
