# SPDX-License-Identifier: Apache-2.0
"""How arrays of a hidden group and of the operations that drive it are laid out.

The state axis leads in all internal arrays: a trailing axis of one or two entries makes every
element-wise loop short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.groups import HiddenGroup
from ..compiler.relation import HiddenParamOpRelation
from ..jaxprs.positions.alignment import Alignment


class Positions(Protocol):
    """A hidden group as rules see it: positions [*V], each with ``S`` states."""

    @property
    def index(self) -> int:
        """Number of the group."""

    @property
    def varshape(self) -> tuple[int, ...]:
        """``[*V]``."""

    @property
    def ndim(self) -> int:
        """Number of position axes."""

    @property
    def num_state(self) -> int:
        """``S``."""


@dataclass(frozen=True, eq=False)
class Link:
    """One relation in one hidden group, and the layout of ``y`` in the group's positions.

    The axes ``E`` are those of the group's along which ``y`` is broadcast or positions are mixed.
    """

    relation: HiddenParamOpRelation
    group: Positions
    alignment: Alignment

    @property
    def extra(self) -> tuple[int, ...]:
        """Sizes of the axes ``E``."""
        return tuple(self.group.varshape[k] for k in self.alignment.extra)

    @cached_property
    def _aligned(self) -> tuple[int, ...]:
        """Axes of ``y`` that run along one of the group."""
        return tuple(i for i, k in enumerate(self.alignment.axes) if k is not None)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """The group's axes: those that an axis of ``y`` runs along in front, in its order."""
        mapped = tuple(self.alignment.axes[i] for i in self._aligned)
        rest = tuple(k for k in range(self.group.ndim) if k not in mapped)
        return (*mapped, *rest)  # type: ignore[arg-type]

    def to_y(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """Lay out [*lead, *V] as [*lead, *E, *Y].

        Along an axis of ``y`` that is mixed, all entries are the same.
        """
        order = tuple(lead + k for k in self._order)
        array = array.transpose(*range(lead), *order)
        if self.alignment.elements is not None:
            return self._taken(array, lead)
        aligned, head = len(self._aligned), array.shape[:lead]
        array = jnp.moveaxis(
            array.reshape(*array.shape[: lead + aligned], *self.extra),
            range(lead, lead + aligned),
            range(-aligned, 0) if aligned else [],
        )
        y = self.relation.y_var.aval.shape
        own = tuple(n if i in self._aligned else 1 for i, n in enumerate(y))
        return jnp.broadcast_to(array.reshape(*head, *self.extra, *own), (*head, *self.extra, *y))

    @cached_property
    def _taking(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Axes of ``y`` with the aligned ones in front, and where the rest of it is taken from.

        Elements of ``y`` find their position along the other axes of the group, flattened, in the
        same way for every index of the aligned axes.
        """
        y_shape, v_shape = self.alignment.source, self.alignment.result
        rest = tuple(i for i in range(len(y_shape)) if i not in self._aligned)
        order = (*self._aligned, *rest)
        elements = np.asarray(self.alignment.elements).transpose(order)
        positions = np.arange(math.prod(v_shape)).reshape(v_shape).transpose(self._order)
        aligned = len(self._aligned)
        flat = positions.reshape(*positions.shape[:aligned], -1)
        first = (0,) * aligned
        place = {p: k for k, p in enumerate(flat[first].tolist())}
        return order, np.array([place.get(p, 0) for p in elements[first].reshape(-1).tolist()])

    def _taken(self, array: jax.Array, lead: int) -> jax.Array:
        """Pick the position of each element of ``y`` from [*lead, *aligned, *rest]."""
        order, places = self._taking
        kept = array.shape[: lead + len(self._aligned)]
        array = array.reshape(*kept, -1)
        if not np.array_equal(places, np.arange(array.shape[-1])):
            array = jnp.take(array, places, axis=-1)
        y = self.alignment.source
        rest = tuple(y[i] for i in order[len(self._aligned) :])
        array = array.reshape(*kept, *rest)
        return array.transpose(*range(lead), *(lead + k for k in np.argsort(order)))

    def sum_to_y(self, array: jax.Array, lead: int) -> jax.Array:
        """Sum [*lead, *E, *Y] over the axes ``E``."""
        return array.sum(tuple(range(lead, lead + len(self.extra)))) if self.extra else array


def join_states(group: HiddenGroup, members: Sequence[Any]) -> jax.Array:
    """Stack one array per member along a leading state axis: [S, *V].

    The state axis leads in all internal arrays: a trailing axis of one or two entries makes every
    element-wise loop short.
    """
    return jnp.concatenate(
        [
            array[None] if array.shape == group.varshape else jnp.moveaxis(array, -1, 0)
            for array in members
        ]
    )


def split_states(group: HiddenGroup, joined: jax.Array) -> list[jax.Array]:
    """The inverse of :func:`join_states`."""
    parts, start = [], 0
    for var, count in zip(group.hidden_outvars, group.state_counts, strict=True):
        part = joined[start : start + count]
        whole = var.aval.shape == group.varshape
        parts.append(part[0] if whole else jnp.moveaxis(part, 0, -1))
        start += count
    return parts
