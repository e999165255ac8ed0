# SPDX-License-Identifier: Apache-2.0
"""The first step after a reset carries no old trace, whatever its derivatives are.

The traces before it are structurally zero. A state that starts where ``sqrt``, ``norm`` or ``log``
have no derivative (a running variance at 0) makes ``D`` and ``e`` of that step infinite or NaN, and
zero times infinity would be NaN from then on. There they are zero, which changes no other number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Block, OldSignals
from ..executor.jacobians import StepJacobians
from ..ops.traces.bands import Bands


def without_past(jacobians: StepJacobians, first: Any, moves: Any = None) -> StepJacobians:
    """Jacobians of ``K`` steps, with ``D`` of the first one zero where it is the ``first`` of all.

    ``moves`` are marks of the Jacobians: a ``D`` that is the same at every step stays as it is.
    """
    found = jacobians.transition
    marks = jax.tree.map(lambda _: True, found) if moves is None else moves.transition

    def cut(D: Any, moves: Any) -> Any:
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


def _cut(steps: jax.Array, first: Any) -> jax.Array:
    """Arrays of several steps, that of the first zero if it is the ``first`` of all."""
    return steps.at[0].set(_or_zero(steps[0], first))


def _or_zero(array: jax.Array, first: Any) -> jax.Array:
    return jnp.where(first, jnp.zeros_like(array), array)
