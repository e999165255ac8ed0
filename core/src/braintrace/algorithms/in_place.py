# SPDX-License-Identifier: Apache-2.0
"""A single step of a trace of several states, each of which is written over itself.

In a loop, XLA writes a new array over the old one where the old one is not read any more. A trace
that holds all its states in one array is read by each of them, and is copied; as an array for each
state, the last state that reads the others goes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.reach import Pattern
from ..executor.cascade import Cascade
from ..ops.operation import Arrays
from ..ops.traces.base import TraceRules, add, by_state


def step_of_trace(
    rules: TraceRules,
    step: tuple[Any, jax.Array, jax.Array | Cascade],
    passing: Pattern,
    signal: jax.Array,
    heard: Sequence[bool],
    trace: Arrays,
    operands: Sequence[Any],
) -> tuple[Arrays, Arrays]:
    """The trace after a step, an array for each state, and what the signal finds in it.

    Filters of a :class:`Cascade` are first, and for them the new traces of what they follow are
    computed once more: to read them where they are written is as much.

    Parameters
    ----------
    step
        ``x`` [1, ..], ``f`` [1, S, ..] and ``D`` [S, S, ..].
    passing
        Which entries of ``D`` are not structurally zero.
    heard
        Which states have a signal.
    """
    x, f, moving = step
    scale, one = rules.scale(operands), rules.of_states(1)
    transition, first = rules.operation.widened(moving), f.shape[1]
    rows: list[Arrays] = []
    found: Arrays = {}

    def old(s: int) -> Arrays:
        return {key: leaf[s] for key, leaf in trace.items()}

    def new(s: int) -> Arrays:
        if s >= first:
            return followed(s, transition)
        own = transition.first if isinstance(transition, Cascade) else transition
        row = {key: leaf[0] for key, leaf in one.increments(x, f[:, s : s + 1], operands).items()}
        for j in (j for j, passes in enumerate(passing[s]) if passes):
            row = add(row, scale(own[s, j], old(j)))
        return {key: leaf.astype(rules.types[key].dtype) for key, leaf in row.items()}

    def followed(s: int, D: Cascade) -> Arrays:
        terms = [(D.between[s - first, j], new(j)) for j in range(first) if D.follows[s - first][j]]
        others = (j for j in range(first, rules.num_state) if passing[s][j])
        terms += [(D.last[s - first, j - first], old(j)) for j in others]
        terms += [] if D.old is None else [(D.old[s - first, j], old(j)) for j in range(first)]
        row = reduce(add, [scale(*term) for term in terms])
        return {key: leaf.astype(rules.types[key].dtype) for key, leaf in row.items()}

    for s in reversed(range(rules.num_state)):
        if found:
            f, transition = after((f, transition), found)
        row = new(s)
        if heard[s]:
            alone = {key: (leaf,) for key, leaf in row.items()}
            found = add(found, one.solve(signal[s : s + 1], alone, operands))
        rows.insert(0, row)
    return by_state(rows), found


def put_together(trace: Mapping[str, Any]) -> Arrays:
    """A trace as :meth:`TraceRules.init` makes it, from either form."""
    return {k: jnp.stack(v) if isinstance(v, tuple) else v for k, v in trace.items()}


def after(values: Any, first: Any) -> Any:
    """``values``, which nothing uses before all arrays of ``first`` are there.

    XLA orders what reads an array and what is written over it by what depends on what alone, and
    copies the array where that leaves the order open. It cannot know that the sum is a number.
    """
    some = [jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(first) if leaf.size]
    if not some:
        return values
    known = sum(some)
    return jax.tree.map(
        lambda v: jnp.where(jnp.isnan(known), v * (1 + jnp.finfo(v.dtype).eps), v), values
    )
