# SPDX-License-Identifier: Apache-2.0
"""States that are set to a start lie on the devices where they lay before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from ..base import versions
from ..base.types import Path, State


def _lies(value: Any) -> bool:
    """Whether an array was put onto a mesh, on purpose."""
    if versions.is_traced(value) or not isinstance(value, jax.Array):
        return False
    return value.committed and not isinstance(value.sharding, SingleDeviceSharding)


def started(make: Callable[[], Any], like: Any) -> Any:
    """``make()`` on the devices of a pytree ``like`` it; nothing is made elsewhere first."""
    tree: Any = jax.tree.structure(like)
    leaves = jax.tree.leaves(like)
    if not any(map(_lies, leaves)):
        return make()
    if jax.tree.structure(jax.eval_shape(make)) != tree:
        return make()
    places = [leaf.sharding if _lies(leaf) else None for leaf in leaves]
    return jax.jit(make, out_shardings=jax.tree.unflatten(tree, places))()


def as_before(before: Mapping[Path, Any], states: Mapping[Path, State]) -> None:
    """Put the new values of states to where those of before lay, if they have as many axes."""
    for path, state in states.items():
        pair = jax.tree.leaves(before.get(path)), jax.tree.leaves(state.value)
        if len({*map(len, pair)}) > 1 or not any(map(_lies, pair[0])):
            continue
        moved = [
            versions.put(new, was.sharding) if _lies(was) and new.ndim == was.ndim else new
            for was, new in zip(*pair, strict=True)
        ]
        if any(a is not b for a, b in zip(moved, pair[1], strict=True)):
            state.value = jax.tree.unflatten(jax.tree.structure(state.value), moved)
