# SPDX-License-Identifier: Apache-2.0
"""How arrays of a hidden group and of the operations that drive it are laid out.

The state axis leads in all internal arrays: a trailing axis of one or two entries makes every
element-wise loop short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.groups import HiddenGroup
from ..compiler.relation import HiddenParamOpRelation
from ..jaxprs.positions.alignment import Alignment
from ..ops.operation import Operation


@dataclass(frozen=True, eq=False)
class Positions:
    """A hidden group as rules see it: positions [*V], each with ``S`` states.

    With whole Jacobians, positions along the ``mixed`` axes count as states: a state is then a pair
    of a state of the group and of an index of the flattened mixed axes.
    """

    group: HiddenGroup
    mixed: tuple[int, ...] = ()

    @property
    def index(self) -> int:
        """Number of the group."""
        return self.group.index

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Axes of the group that are not mixed."""
        return tuple(k for k in range(self.group.ndim) if k not in self.mixed)

    @property
    def varshape(self) -> tuple[int, ...]:
        """``[*V]``: sizes of the kept axes."""
        return tuple(self.group.varshape[k] for k in self.kept)

    @property
    def ndim(self) -> int:
        """Number of kept axes."""
        return len(self.kept)

    @property
    def num_mixed(self) -> int:
        """Number ``M`` of mixed positions."""
        return math.prod(self.group.varshape[k] for k in self.mixed)

    @property
    def num_state(self) -> int:
        """``S``: states of the group times mixed positions."""
        return self.group.num_state * self.num_mixed

    def stacked(self, members: Sequence[Any]) -> jax.Array:
        """One array per member as [S, *V]."""
        return self.joined(join_states(self.group, members))

    def joined(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """States and positions of the group, after ``lead`` other axes, as [*lead, S, *V]."""
        first = lead + 1
        array = array.transpose(*range(first), *(first + k for k in (*self.mixed, *self.kept)))
        return array.reshape(*array.shape[:lead], self.num_state, *self.varshape)

    def parted(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """The inverse of :meth:`joined`."""
        sizes = [self.group.varshape[k] for k in self.mixed]
        array = array.reshape(*array.shape[:lead], self.group.num_state, *sizes, *self.varshape)
        first, order = lead + 1, np.argsort((*self.mixed, *self.kept))
        return array.transpose(*range(first), *(first + int(k) for k in order))

    def places(self) -> np.ndarray:
        """For each position of the group, its index along the flattened mixed axes."""
        sizes = [n if k in self.mixed else 1 for k, n in enumerate(self.group.varshape)]
        return np.broadcast_to(np.arange(self.num_mixed).reshape(sizes), self.group.varshape)

    def alignment(self, found: Alignment) -> Alignment:
        """How ``y``, which lies in the group as ``found``, lies along the kept axes."""
        if not self.mixed:
            return found
        number = {axis: i for i, axis in enumerate(self.kept)}
        axes = tuple(None if k is None else number.get(k) for k in found.axes)
        elements = found.elements
        if all(n == 1 or k in axes for k, n in enumerate(self.varshape)):
            elements = None
        elif elements is not None:
            where = np.unravel_index(np.maximum(elements, 0), self.group.varshape)
            flat = np.ravel_multi_index([where[k] for k in self.kept], self.varshape)
            elements = np.where(elements < 0, elements, flat)
        return replace(found, result=self.varshape, axes=axes, elements=elements)


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
    def operation(self) -> Operation:
        """The relation's operation as its rules see it in the group."""
        relation = self.relation
        return Operation(
            spec=relation.spec,
            params=relation.eqn_params,
            operand_avals=tuple(atom.aval for atom in relation.operands),
            y_aval=relation.y_var.aval,
            traced=tuple(t.key for t in relation.trainables),
            group=self.group if self.group.mixed else self.group.group,
        )

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
