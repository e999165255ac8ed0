# SPDX-License-Identifier: Apache-2.0
"""Reverse mode of the new values of a hidden group, for cotangents at chosen positions.

A cotangent of ones at one state sums, for every position of an input, over the positions that
depend on it. Where that is a single one, the sum is the derivative itself. Along axes where it is
not, cotangents at one position at a time are pulled back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from .layout import Link, Positions, join_states

#: How many positions are pulled back together where positions are mixed.
TOGETHER = 32


@dataclass(frozen=True, eq=False)
class Pullback:
    """Reverse mode of a group's new values: ``pull(cotangents) -> (of old values, of each y)``."""

    positions: Positions
    news: Sequence[Any]
    pull: Callable[[list[Any]], Any]

    @classmethod
    def of_program(
        cls, positions: Positions, program: Any, held: Sequence[Any], olds: Sequence[Any]
    ) -> Pullback:
        """Of a transition that has a program of its own, in the old values."""
        call = versions.jaxpr_as_fun(program)
        return cls(positions, *jax.vjp(lambda olds: call(*held, *olds), [*olds]))

    def rows(self, mask: jax.Array) -> list[Any]:
        """Per state, what is pulled back from ``mask`` [*V of the group] at that state."""
        found, zeros = [], jnp.zeros_like(mask)
        for member, new in enumerate(self.news):
            count = self.positions.group.state_counts[member]
            for k in range(count):
                own = [mask if j == k else zeros for j in range(count)]
                cotangents = [jnp.zeros(v.shape, v.dtype) for v in self.news]
                whole = mask if new.shape == mask.shape else jnp.stack(own, -1)
                cotangents[member] = whole.astype(new.dtype)
                found.append(self.pull(cotangents))
        return found

    @cached_property
    def sums(self) -> list[Any]:
        """The rows of ones everywhere."""
        return self.rows(jnp.ones(self.positions.group.varshape))

    def each(self, axes: Sequence[int], take: Callable[[list[Any], jax.Array], Any]) -> Any:
        """``take(rows, index)`` for each index of the flattened ``axes`` of positions, stacked.

        The rows belong to cotangents that are one at the positions with that index.
        """
        shape = self.positions.group.varshape
        count = math.prod(shape[k] for k in axes)
        numbers = np.arange(count).reshape([n if k in axes else 1 for k, n in enumerate(shape)])

        def one(index: jax.Array) -> Any:
            mask = jnp.broadcast_to(numbers == index, shape).astype(jnp.result_type(float))
            return take(self.rows(mask), index)

        return jax.lax.map(one, jnp.arange(count), batch_size=min(TOGETHER, count))

    def transition(self, mixed: tuple[int, ...]) -> jax.Array:
        """``D`` [S, S, *V], where positions of the group are mixed along some axes."""
        if not mixed:
            return jnp.stack([self._olds(row) for row in self.sums])
        return self._whole() if self.positions.mixed else self._block_diagonal(mixed)

    def _olds(self, row: Any) -> jax.Array:
        return join_states(self.positions.group, row[0])

    def _whole(self) -> jax.Array:
        """Every entry; see :class:`Positions`."""
        positions = self.positions
        found = self.each(  # [M, S of the group, S, *V]
            positions.mixed,
            lambda rows, _: positions.joined(jnp.stack([self._olds(row) for row in rows]), 1),
        )
        return jnp.moveaxis(found, 0, 1).reshape(positions.num_state, *found.shape[2:])

    def _block_diagonal(self, mixed: tuple[int, ...]) -> jax.Array:
        """Its diagonal along the mixed axes."""
        shape = self.positions.group.varshape
        order = (*(k for k in range(len(shape)) if k not in mixed), *mixed)
        kept = len(order) - len(mixed)

        def own(rows: list[Any], index: jax.Array) -> jax.Array:
            moved = jnp.stack([self._olds(row) for row in rows]).transpose(
                0, 1, *(2 + k for k in order)
            )
            return jnp.take(moved.reshape(*moved.shape[: 2 + kept], -1), index, axis=-1)

        found = jnp.moveaxis(self.each(mixed, own), 0, -1)
        found = found.reshape(*found.shape[:2], *(shape[k] for k in order))
        return found.transpose(0, 1, *(2 + k for k in np.argsort(order)))

    def factor(self, link: Link, i: int) -> jax.Array:
        """``f`` [S, *E, *Y] of link ``i``."""
        positions = self.positions
        extra = tuple(positions.kept[k] for k in link.alignment.extra)
        axes = sorted((*positions.mixed, *extra))  # each() numbers them in the group's order
        if not axes:
            return jnp.stack([row[1][i] for row in self.sums])
        found = self.each(axes, lambda rows, _: jnp.stack([row[1][i] for row in rows]))
        found = found.reshape(*(positions.group.varshape[k] for k in axes), *found.shape[1:])
        order = [axes.index(k) for k in (*positions.mixed, *extra)]
        order.insert(0, len(axes))  # [S of the group, *mixed, *E, *Y]
        found = found.transpose(*order, *range(len(order), found.ndim))
        return found.reshape(positions.num_state, *link.extra, *link.operation.y_aval.shape)
