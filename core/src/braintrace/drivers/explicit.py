# SPDX-License-Identifier: Apache-2.0
"""Meshes with explicit axes, inside of which a learner runs as if they were automatic.

On such a mesh the place of an array is part of its type, and JAX refuses an operation whose result
could lie in several ways, as every sum over examples does that lie on several devices. Inside, XLA
chooses, as on a mesh with automatic axes. What comes out has a place again: a state where it lay, a
gradient where its parameter lies, and all else where the arguments lie along the axes that it
shares with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import brainstate
import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..base import versions
from ..base.types import State
from ..compiler.places import (
    as_automatic,
    explicit_mesh,
    is_array,
    states_without_place,
    type_without_place,
)

Like = Callable[[Any], Any]
"""From a result to a pytree of arrays that its leaves lie like; ``None``: like the arguments."""


def automatic(run: Callable[..., Any], args: tuple[Any, ...], like: Like) -> Any:
    """``run(*args)``, a function without states, in which no axis is explicit."""
    mesh = explicit_mesh(args)
    if mesh is None:
        return run(*args)
    with jax.sharding.use_abstract_mesh(as_automatic(mesh)):
        result = run(*jax.tree.map(_without_place, args))
    return _placed(result, like(result), args, mesh)


def automatic_with_states(
    run: Callable[..., Any], args: tuple[Any, ...], like: Like, states: Iterable[State] = ()
) -> Any:
    """The same for a function that reads and writes states, which alone may lie on such a mesh."""
    mesh = explicit_mesh((args, [state._value for state in states]))
    if mesh is None:
        return run(*args)
    types = jax.tree.map(type_without_place, args)
    stateful = brainstate.transform.StatefulFunction(run, return_only_write=False)
    with states_without_place(mesh):
        stateful.make_jaxpr(*types)
    program, trace = stateful.get_jaxpr(*types), stateful.get_state_trace(*types)
    tree = jax.tree.structure(stateful.get_out_shapes(*types))
    old = [state.value for state in trace.states]
    with jax.sharding.use_abstract_mesh(as_automatic(mesh)):
        flat = jax.tree.map(_without_place, jax.tree.leaves((args, old)))
        result, new = jax.tree.unflatten(tree, versions.jaxpr_as_fun(program)(*flat))
    for state, wrote, was, now in zip(trace.states, trace.been_writen, old, new, strict=True):
        if wrote:
            state.value = _placed(now, was, (), mesh)
    return _placed(result, like(result), args, mesh)


def _without_place(leaf: Any) -> Any:
    return jax.sharding.reshard(leaf, PartitionSpec()) if is_array(leaf) else leaf


def _placed(result: Any, like: Any, args: Any, mesh: Any) -> Any:
    """``result`` with the places of another pytree, and where that ends, with those of ``args``."""
    given = [jax.typeof(leaf) for leaf in jax.tree.leaves(args) if is_array(leaf)]

    def put(leaf: Any, spec: Any) -> Any:
        return jax.sharding.reshard(leaf, NamedSharding(mesh, spec)) if is_array(leaf) else leaf

    def one(other: Any, part: Any) -> Any:
        if other is None:
            return jax.tree.map(lambda leaf: put(leaf, _along(leaf, given)), part)
        spec = jax.typeof(other).sharding.spec if is_array(other) else PartitionSpec()
        return put(part, spec)

    return jax.tree.map(one, like, result, is_leaf=lambda v: v is None)


def _along(leaf: Any, given: list[Any]) -> PartitionSpec:
    """The place of the first of some types that shares leading axes that are divided."""
    for aval in given:
        pairs = zip(leaf.shape, aval.shape, strict=False)
        shared = next((k for k, (a, b) in enumerate(pairs) if a != b), min(leaf.ndim, aval.ndim))
        if any(own := aval.sharding.spec[:shared]):
            return PartitionSpec(*own)
    return PartitionSpec()
