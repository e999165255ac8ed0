# SPDX-License-Identifier: Apache-2.0
"""The trace of an operation that is repeated within a step: one for all its iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..operation import Arrays, folded
from .bands import Bands
from .base import TraceRules


@dataclass(eq=False)
class RepeatedTrace(TraceRules):
    """A trace in the structure of the operation that is repeated, whose rules are ``one``.

    Iterations are to it what steps are to a block: their increments are added up. Factors and
    signals [S, *E, n, *Y] of all of them say the same where they scale a trace, because a loop puts
    what all iterations give into the same positions.
    """

    one: TraceRules

    @property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self.one.types

    @property
    def options(self) -> str:
        return self.one.options

    def of_states(self, num_state: int) -> Self:
        return replace(self, num_state=num_state, one=self.one.of_states(num_state))

    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        scale = self.one.scale(operands)
        return lambda factor, trace: scale(self._first(factor, 0), trace)

    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        return self.one.propagate(self._first(transition, 2), trace, operands)

    def propagate_by_bands(
        self, transition: Bands, trace: Arrays, x: Any, f: Any, operands: Sequence[Any]
    ) -> Arrays:
        first = jax.tree.map(lambda v: self._first(v, 1), transition)
        kept = self.one.propagate_by_bands(first, trace, None, None, operands)
        return kept if f is None else self.joined(kept, self.increments(x[None], f[None], operands))

    def joined(self, kept: Arrays | None, new: Arrays) -> Arrays:
        return self.one.joined(kept, new)

    def _first(self, array: jax.Array, lead: int) -> jax.Array:
        return jnp.take(array, 0, axis=lead + len(self.extra))

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        f = jnp.moveaxis(f, 2 + len(self.extra), 1)  # [K, n, S, *E, *Y]
        return self.one.increments(folded(x), folded(f), operands)

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        return self.one.solve(self._first(signal, 1), trace, operands)

    def solve_in_parts(
        self, signal: jax.Array, trace: Arrays, operands: Sequence[Any], parts: int
    ) -> Arrays:
        return self.one.solve_in_parts(self._first(signal, 1), trace, operands, parts)
