# SPDX-License-Identifier: Apache-2.0
"""The first step after a reset carries no old trace, whatever its derivatives are.

The traces before it are structurally zero. A state that starts where ``sqrt``, ``norm`` or ``log``
have no derivative (a running variance at 0) makes ``D`` and ``e`` of that step infinite or NaN, and
zero times infinity would be NaN from then on. There they are zero, which changes no other number.

A state that takes in old values alone has no trace yet at the first step, whatever its signal is,
that of its root, say. A filter of credit stands behind what a layer emits, and so behind the square
in a norm, the signal of which is infinite where the norm is zero. It hears none of that where an
episode's reset cuts the old values that it reads, either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms.base import Block, OldSignals
from ..base.types import Path
from ..compiler.filters import emitted_paths, is_filter
from ..executor.cascade import Cascade
from ..executor.executor import Executor
from ..executor.jacobians import StepJacobians
from ..executor.layout import Positions
from ..ops.traces.bands import Bands


def is_first(number: Any, size: int, before: Any) -> Any:
    """Whether traces are zero in front of a block: its number, its size, steps ``before`` all."""
    return not (isinstance(number, int) and number) and before + number * size == 0


def without_past(jacobians: StepJacobians, first: Any, moves: Any = None) -> StepJacobians:
    """Jacobians of ``K`` steps, with ``D`` of the first one zero where it is the ``first`` of all.

    ``moves`` are marks of the Jacobians: a ``D`` that is the same at every step stays as it is.
    """
    found = jacobians.transition
    marks = jax.tree.map(lambda _: True, found) if moves is None else moves.transition

    def cut(D: Any, moves: Any) -> Any:
        if isinstance(D, Cascade):  # what follows new values has no past
            names = ("first", "last", *(() if D.old is None else ("old",)))
            pairs = {name: (getattr(D, name), getattr(moves, name)) for name in names}
            return replace(D, **{name: cut(*pair) for name, pair in pairs.items()})
        if not isinstance(D, Bands):
            return _cut(D, first) if moves else D
        values = (cut(*pair) for pair in zip(D.values, moves.values, strict=True))
        pulled = D.pulled and replace(D.pulled, past=_cut(D.pulled.past, first))
        return replace(D, values=tuple(values), pulled=pulled)

    pairs = zip(found, marks, strict=True)
    return jacobians._replace(transition=tuple(None if D is None else cut(D, m) for D, m in pairs))


def block_without_past(block: Block, first: Any, moves: Block) -> Block:
    """A block, with ``D`` and ``e`` of its first step zero where it is the ``first`` of all."""
    if first is False:
        return block
    old = (e if e is None else _cut(e, first) for e in block.old_signal)
    jacobians = without_past(block.jacobians, first, moves.jacobians)
    return block._replace(jacobians=jacobians, old_signal=tuple(old))


def unless_first(signals: OldSignals, first: Any) -> OldSignals:
    """Signals at the old values of a step, zero where it is the ``first`` of all."""
    return tuple(None if e is None else _or_zero(e, first) for e in signals)


def finite_where_still(executor: Executor, block: Block, first: Any) -> Block:
    """A block, in which states that a step does not move hear no number that is not finite.

    Those are states that no operation drives at the same step: at the ``first`` of all, and filters
    also where ``D`` from all other states is zero. The memory of a filter counts as well, unless it
    stands for a leak that the model does not have.
    """
    signals = [*block.signal]
    moving = executor.graph.moving
    emitted = emitted_paths(moving) if moving else ()
    for positions, paths, late in _late_states(executor):
        g, D = positions.index, block.jacobians.transition[positions.index]
        if first is not False:
            spared = late.reshape(-1, *(1,) * positions.ndim) & jnp.asarray(first)
            signals[g] = signals[g].at[0].set(_finite(signals[g][0], ~spared))
        rows = [s for s in np.flatnonzero(late) if is_filter(paths[s])]
        if not rows or D is None or isinstance(D, Bands):
            continue
        if isinstance(D, Cascade):
            D = jax.vmap(Cascade.composed)(D)
        own = np.array([[paths[s] == path and path in emitted for path in paths] for s in rows])
        others = ~own.reshape(*own.shape, *(1,) * positions.ndim)
        moved = ((D[:, np.array(rows)] != 0) & others).any(2)
        for k, s in enumerate(rows):
            signals[g] = signals[g].at[:, s].set(_finite(signals[g][:, s], moved[:, k]))
    return block._replace(signal=tuple(signals))


def drives_every_state(executor: Executor) -> bool:
    """Whether operations drive every state at the same step, so that none may stand still."""
    return not any(True for _ in _late_states(executor))


def _finite(signal: jax.Array, moved: Any) -> jax.Array:
    return jnp.where(moved | jnp.isfinite(signal), signal, 0)


def _late_states(executor: Executor) -> Iterator[tuple[Positions, list[Path], np.ndarray]]:
    """The groups of which operations do not drive every state at the same step: which those are.

    With each group come the paths of its states.
    """
    for positions in executor.driven:
        group, driving = positions.group, executor.graph.cones[positions.index].driving
        own = [driving[k.relation.y_var] for k in executor.links if k.group is positions]
        late = np.repeat(~np.any(own, 0), positions.num_mixed)
        pairs = zip(group.hidden_paths, group.state_counts, strict=True)
        paths = [path for path, n in pairs for _ in range(n * positions.num_mixed)]
        if late.any():
            yield positions, paths, late


def _cut(steps: jax.Array, first: Any) -> jax.Array:
    """Arrays of several steps, that of the first zero if it is the ``first`` of all."""
    return steps.at[0].set(_or_zero(steps[0], first))


def _or_zero(array: jax.Array, first: Any) -> jax.Array:
    return jnp.where(first, jnp.zeros_like(array), array)
