# SPDX-License-Identifier: Apache-2.0
"""A model is traced as if its arrays lay anywhere and were the same on all devices.

Where an array lies is part of its type on a mesh with explicit axes, and inside of
``jax.shard_map``, along which axes it varies between devices. Neither belongs to a compiled model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
from jax.sharding import AxisType

from ..base import versions
from ..base.types import State
from ..ops.operation import holds_convolutions as holds_convolutions


def explicit_mesh(tree: Any = None) -> Any:
    """The mesh with explicit axes that is set, or that an array lies on; ``None`` without any."""
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree) if is_array(leaf)]
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.dtype != jax.dtypes.float0


def traced_without_place(trace: Callable[..., None], args: tuple[Any, ...]) -> None:
    """``trace(*args)``, which reads types of arguments and states, as if there was one device."""
    varying, mesh = versions.types_vary(), explicit_mesh(args)
    if mesh is None and not varying:
        trace(*args)
        return

    def run() -> None:
        with states_without_place(mesh or jax.sharding.get_abstract_mesh()):
            trace(*jax.tree.map(type_without_place, args))

    versions.without_varying(run) if varying else run()


def made_here(states: Iterable[State]) -> None:
    """States that were made while something was traced are as those that are made here."""
    for state in states:
        vars(state).update(vars(state.copy()))  # a copy is made here


@contextmanager
def states_without_place(mesh: Any) -> Iterator[None]:
    """What is traced inside meets states as if no axis were explicit."""

    def types(state: Any) -> Any:
        return jax.tree.map(type_without_place, state._value)

    trace: Any = brainstate.StateTraceStack(new_arg=types)
    try:
        with jax.sharding.use_abstract_mesh(as_automatic(mesh)), trace:
            yield
    finally:
        trace.recovery_original_values()


def axes_of_place(spec: Any) -> list[tuple[str, ...]]:
    """For each axis of an array with this place, the axes of the mesh that divide it."""
    return [(part,) if isinstance(part, str) else tuple(part or ()) for part in spec]


def as_automatic(mesh: Any) -> Any:
    return mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))


def type_without_place(leaf: Any) -> Any:
    if not is_array(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=jax.typeof(leaf).weak_type)
