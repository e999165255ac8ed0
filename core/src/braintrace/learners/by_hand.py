# SPDX-License-Identifier: Apache-2.0
"""Places that users gave states and arguments by hand, of which one kind gives wrong numbers.

XLA divides a convolution whose positions in space lie on several devices, and on a mesh with more
axes than that one, derivatives of it are wrong (jax 0.10.2 and 0.12.0.1; the kernel's gradient by
``jax.grad``, too). ``learner.shard`` divides examples and channels, which is right.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.types import show_path
from ..compiler.module_info import StateKind
from ..compiler.places import axes_of_place, holds_convolutions

WRONG = "XLA computes wrong derivatives of convolutions whose positions are divided there."
#: Places of states by learner that are known to be right.
_KNOWN: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()
#: How learners were divided that are divided by hand.
_FOUND: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def take_places(learner: Any, args: Any = (), lead: int = 1) -> None:
    """Divide sums over examples as states, or else arguments, are divided by hand.

    What is traced on automatic axes does not tell, and what was known before stays.
    """
    executors = learner.rule.executor, learner.executor.compiled
    known, pairs = executors[0].divided, [*_examples(learner), *_of_arguments(args, lead)]
    if known is not _FOUND.get(learner):
        return  # by learner.shard
    found = next(filter(None, (_division(*pair) for pair in pairs)), None)
    if found is None and any(versions.is_traced(leaf) for leaf, *_ in pairs):
        return
    if found != known:
        _FOUND[learner] = found
        for executor in executors:
            executor.divide(found)


def _examples(learner: Any) -> Iterator[tuple[Any, int, bool]]:
    """The hidden states and their axis of examples, and that their other axes are of units."""
    links = learner.rule.executor.links
    batched = (link for link in links if link.relation.spec.batched)
    for group, axis in {link.group.group: link.alignment.axes[0] for link in batched}.items():
        for state, states in zip(group.hidden_states, group.state_axes, strict=True):
            leaf = jax.tree.leaves(state.value)[0]
            if axis is not None and isinstance(leaf, jax.Array):
                several = leaf.shape != group.varshape and states % leaf.ndim <= axis
                yield leaf, axis + several, True


def _of_arguments(args: Any, lead: int) -> Iterator[tuple[Any, int, bool]]:
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf, jax.Array):
            yield leaf, lead - 1, False


def _division(value: Any, examples: int, units: bool) -> tuple[int, Any] | None:
    """Among how many devices the examples of a value lie, and, with its units, on which."""
    place = jax.typeof(value).sharding if versions.is_traced(value) else value.sharding
    if not isinstance(place, NamedSharding):
        return None
    mesh: Any = place.mesh
    axes = axes_of_place(place.spec)
    own = [tuple(name for name in part if mesh.shape[name] > 1) for part in axes]
    batch = own[examples] if len(own) > examples else ()
    if not batch and not (units and any(own)):
        return None
    if not units or not any(own[:examples] + own[examples + 1 :]):
        return math.prod(mesh.shape[name] for name in batch), None
    from .placing import automatic

    where = NamedSharding(automatic(mesh), PartitionSpec(batch or None))
    return math.prod(mesh.shape[name] for name in batch), where


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

    for axis, names in enumerate(axes_of_place(spec)):
        if not axis or not names:
            continue
        try:
            right = found_places(learner, mesh, (), names).get(state)
        except ValueError:
            return axis, names
        if right is None:  # of a layer that the rule leaves to filters, and XLA chose the place
            if jax.tree.leaves(state.value)[0].ndim <= 2:
                continue
            right = PartitionSpec()
        if len(right) <= axis or right[axis] is None:
            return axis, names
    return None
