# SPDX-License-Identifier: Apache-2.0
"""Reverse sweeps over the new values of a hidden group.

A cotangent of ones at one state sums, for every position of an input, over the positions that
depend on it. Where that is a single one, the sum is the derivative itself. Along axes where it is
not, the sweep is repeated with the cotangent at one position at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.groups import HiddenGroup
from .layout import Link, join_states, split_states

#: How many positions are swept together where positions are mixed.
SWEPT_TOGETHER = 32


@dataclass(frozen=True, eq=False)
class Reverse:
    """Reverse mode of a group's new values: ``pull(cotangents) -> (of old values, of each y)``."""

    group: HiddenGroup
    news: Sequence[Any]
    pull: Callable[[list[Any]], Any]

    def rows(self, mask: Any = None) -> list[Any]:
        """Per state, the pull-back of ones (or of ``mask`` [*V]) at that state everywhere."""
        group = self.group
        ones = jnp.ones(group.varshape) if mask is None else mask
        zeros, states = jnp.zeros_like(ones), range(group.num_state)
        found = []
        for i in states:
            parts = split_states(group, jnp.stack([ones if i == j else zeros for j in states]))
            cast = [part.astype(new.dtype) for part, new in zip(parts, self.news, strict=True)]
            found.append(self.pull(cast))
        return found

    def each(self, axes: Sequence[int], take: Callable[[list[Any], jax.Array], Any]) -> Any:
        """``take(rows, index)`` for each index of the flattened ``axes`` of positions, stacked.

        The rows belong to cotangents that are one at the positions with that index.
        """
        shape = self.group.varshape
        count = math.prod(shape[k] for k in axes)
        numbers = np.arange(count).reshape([n if k in axes else 1 for k, n in enumerate(shape)])

        def one(index: jax.Array) -> Any:
            mask = jnp.broadcast_to(numbers == index, shape).astype(jnp.result_type(float))
            return take(self.rows(mask), index)

        return jax.lax.map(one, jnp.arange(count), batch_size=min(SWEPT_TOGETHER, count))


def factor_by_position(sweep: Reverse, link: Link, i: int) -> jax.Array:
    """``f`` [S, *E, *Y] of a link, one position of the axes ``E`` at a time."""
    found = sweep.each(
        link.alignment.extra, lambda rows, index: jnp.stack([row[1][i] for row in rows])
    )
    found = jnp.moveaxis(found, 0, 1)
    return found.reshape(found.shape[0], *link.extra, *found.shape[2:])


def block_diagonal(sweep: Reverse, mixed: tuple[int, ...]) -> jax.Array:
    """``D`` [S, S, *V] where positions are mixed along some axes: its diagonal along them."""
    group = sweep.group
    kept = tuple(k for k in range(group.ndim) if k not in mixed)

    def own(rows: list[Any], index: jax.Array) -> jax.Array:
        all_positions = jnp.stack([join_states(group, row[0]) for row in rows])
        moved = all_positions.transpose(0, 1, *(2 + k for k in (*kept, *mixed)))
        flat = moved.reshape(*moved.shape[: 2 + len(kept)], -1)
        return jnp.take(flat, index, axis=-1)

    found = jnp.moveaxis(sweep.each(mixed, own), 0, -1)
    shape = tuple(group.varshape[k] for k in (*kept, *mixed))
    found = found.reshape(*found.shape[:2], *shape)
    return found.transpose(0, 1, *(2 + k for k in np.argsort((*kept, *mixed))))
