# SPDX-License-Identifier: Apache-2.0
"""Places that users gave states by hand, of which one kind gives wrong numbers.

XLA divides a convolution whose positions in space lie on several devices, and on a mesh with more
axes than that one, derivatives of it are wrong (jax 0.10.2 and 0.12.0.1; the kernel's gradient by
``jax.grad``, too). ``learner.shard`` divides examples and channels, which is right.
"""

from __future__ import annotations

import weakref
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.types import show_path
from ..compiler.module_info import StateKind
from ..compiler.places import holds_convolutions

WRONG = "XLA computes wrong derivatives of convolutions whose positions are divided there."
#: Places of states by learner that are known to be right.
_KNOWN: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def refusal(learner: Any, args: Any = (), lead: int = 1) -> NotSupportedError | None:
    """An error where positions in space of a convolution are divided.

    ``args`` are divided along ``lead`` axes in front alone: of steps, and of examples.
    """
    for leaf in jax.tree.leaves(args):
        place = _place(leaf, lead) if isinstance(leaf, jax.Array) else None
        if place is not None and holds_convolutions(learner.graph.module_info.jaxpr):
            return NotSupportedError(
                f"an argument of shape {leaf.shape} is divided as {place.spec} says; the mesh has "
                f"{dict(place.mesh.shape)}. {WRONG} Divide the examples of arguments alone, or "
                "take a mesh with one axis"
            )
    for path, state in learner.states_of(StateKind.HIDDEN).items():
        place = _place(jax.tree.leaves(state.value)[0])
        known = _KNOWN.setdefault(learner, set())
        if place is None or (path, place) in known:
            continue
        mesh, spec = place.mesh, place.spec
        if holds_convolutions(learner.graph.module_info.jaxpr) and (
            wrong := _in_space(learner, state, mesh, spec)
        ):
            axis, names = wrong
            shape, parts = jax.tree.leaves(state.value)[0].shape, [mesh.shape[n] for n in names]
            return NotSupportedError(
                f"the state {show_path(path)} of shape {shape} is divided along axis {axis}, a "
                f"position in space, among {parts} devices of {'+'.join(names)!r}; the mesh has "
                f"{dict(mesh.shape)}. {WRONG} Divide examples and channels (learner.shard), or "
                "take a mesh with one axis"
            )
        known.add((path, place))
    return None


def _place(value: Any, lead: int = 1) -> NamedSharding | None:
    """Where a value is divided along more than its first axes, on a mesh of several axes."""
    place = jax.typeof(value).sharding if versions.is_traced(value) else value.sharding
    if not isinstance(place, NamedSharding) or not any(place.spec[lead:]):
        return None
    return place if sum(size > 1 for size in place.mesh.shape.values()) > 1 else None


def _in_space(learner: Any, state: Any, mesh: Any, spec: Any) -> tuple[int, tuple[str, ...]] | None:
    """An axis of a state that ``learner.shard`` would not divide, and the axes of the mesh."""
    from .placing import found_places

    for axis, part in enumerate(spec):
        names = (part,) if isinstance(part, str) else tuple(part or ())
        if not axis or not names:
            continue
        try:
            right = found_places(learner, mesh, (), names).get(state, PartitionSpec())
        except ValueError:
            return axis, names
        if len(right) <= axis or right[axis] is None:
            return axis, names
    return None
