# SPDX-License-Identifier: Apache-2.0
"""How arrays of a hidden group and of the operations that drive it are laid out.

The state axis leads in all internal arrays: a trailing axis of one or two entries makes every
element-wise loop short.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.precision import wide_dtype
from ..compiler.groups import HiddenGroup
from ..compiler.module_info import ModuleInfo
from ..compiler.relation import HiddenParamOpRelation
from ..jaxprs.positions.alignment import Alignment
from ..ops.operation import Arrays, Operation, fits_parts, split
from ..ops.traces import trace_rules


def numbers_along(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Indices along some axes of a shape, flattened in their order; of size 1 along the others."""
    sizes, others = [shape[k] for k in axes], tuple({*range(len(shape))} - {*axes})
    numbers = np.arange(math.prod(sizes)).reshape(sizes).transpose(np.argsort(axes))
    return np.expand_dims(numbers, others)


def numbered(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """The same for every position of the shape."""
    return np.broadcast_to(numbers_along(shape, axes), shape)


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
        return self.group.index

    @cached_property
    def kept(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.group.ndim) if k not in self.mixed)

    @property
    def varshape(self) -> tuple[int, ...]:
        """``[*V]``: sizes of the kept axes."""
        return tuple(self.group.varshape[k] for k in self.kept)

    @property
    def ndim(self) -> int:
        return len(self.kept)

    @property
    def num_mixed(self) -> int:
        """Number ``M`` of mixed positions."""
        return math.prod(self.group.varshape[k] for k in self.mixed)

    @cached_property
    def wide(self) -> Any:
        """The dtype that signals and products of transitions have at least."""
        return wide_dtype(*(var.aval.dtype for var in self.group.hidden_outvars))

    @property
    def num_state(self) -> int:
        """``S``: states of the group times mixed positions."""
        return self.group.num_state * self.num_mixed

    def stacked(self, members: Sequence[Any]) -> jax.Array:
        """One array per member as [S, *V]."""
        shape, pairs = self.group.varshape, zip(members, self.group.state_axes, strict=True)
        rows = [v[None] if v.shape == shape else jnp.moveaxis(v, k, 0) for v, k in pairs]
        return self.joined(rows[0] if len(rows) == 1 else jnp.concatenate(rows))

    def members(self, array: jax.Array) -> list[jax.Array]:
        """One array per member, in their dtypes, from [S, *V] where no positions are mixed."""
        found, first, group = [], 0, self.group
        pairs = zip(group.hidden_outvars, group.state_counts, group.state_axes, strict=True)
        for var, count, axis in pairs:
            own = array[first : first + count]
            single = var.aval.shape == group.varshape
            value = own[0] if single else jnp.moveaxis(own, 0, axis)
            found.append(value.astype(var.aval.dtype))
            first += count
        return found

    def joined(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """States and positions of the group, after ``lead`` other axes, as [*lead, S, *V]."""
        array = array.transpose(*_after(lead + 1, (*self.mixed, *self.kept)))
        return array.reshape(*array.shape[:lead], self.num_state, *self.varshape)

    def parted(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """The inverse of :meth:`joined`."""
        sizes = [self.group.varshape[k] for k in self.mixed]
        array = array.reshape(*array.shape[:lead], self.group.num_state, *sizes, *self.varshape)
        return array.transpose(*_after(lead + 1, np.argsort((*self.mixed, *self.kept))))

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
            places = numbered(self.group.varshape, self.kept).reshape(-1)
            elements = np.where(elements < 0, elements, places[elements])
        return replace(found, result=self.varshape, axes=axes, elements=elements)


@dataclass(frozen=True, eq=False)
class Link:
    """One relation in one hidden group, and the layout of ``y`` in the group's positions.

    The axes ``E`` are those of the group's along which ``y`` is broadcast or positions are mixed.
    """

    relation: HiddenParamOpRelation
    group: Positions
    alignment: Alignment
    index: int = 0

    @property
    def extra(self) -> tuple[int, ...]:
        """Sizes of the axes ``E``."""
        return tuple(self.group.varshape[k] for k in self.alignment.extra)

    @cached_property
    def operation(self) -> Operation:
        """The relation's operation as its rules see it in the group."""
        relation, params = self.relation, self.relation.module_info.parameter_leaves
        leaves = (leaf for operand in relation.trainables for leaf in operand.leaves)
        least = wide_dtype(self.group.wide, *(params[leaf].aval.dtype for leaf in leaves))
        return Operation(
            spec=relation.spec,
            params=relation.eqn_params,
            operand_avals=tuple(atom.aval for atom in relation.operands),
            y_aval=relation.y_var.aval,
            traced=tuple(t.key for t in relation.trainables),
            group=self.group if self.group.mixed else self.group.group,
            least=least,
        )

    @property
    def options(self) -> str:
        """What users chose for its trace besides its types, as they write it."""
        return trace_rules(self.operation, self.extra, 1).options

    @cached_property
    def cotangent_types(self) -> dict[str, jax.ShapeDtypeStruct]:
        """By trainable key, the type of a sum of cotangents of a traced operand."""
        return {key: self.operation.cotangent_type(key) for key in self.operation.traced}

    @cached_property
    def _along(self) -> dict[int, int]:
        """Axes of ``y`` that run along one of the group, and which."""
        return {i: k for i, k in enumerate(self.alignment.axes) if k is not None}

    @cached_property
    def _others(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.group.ndim) if k not in self._along.values())

    def to_y(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """Lay out [*lead, *V] as [*lead, *E, *Y].

        Along an axis of ``y`` that is mixed, all entries are the same.
        """
        along, y = tuple(self._along.values()), self.relation.y_var.aval.shape
        if self.alignment.elements is None:
            array = array.transpose(*_after(lead, (*self._others, *along)))
            head = (*array.shape[:lead], *self.extra)
            own = (n if i in self._along else 1 for i, n in enumerate(y))
            return jnp.broadcast_to(array.reshape(*head, *own), (*head, *y))
        order, places = self._taking
        array = array.transpose(*_after(lead, (*along, *self._others)))
        kept = array.shape[: lead + len(along)]
        array = array.reshape(*kept, -1)
        if not np.array_equal(places, np.arange(array.shape[-1])):
            array = jnp.take(array, places, axis=-1)
        array = array.reshape(*kept, *(y[i] for i in order[len(along) :]))
        return array.transpose(*_after(lead, np.argsort(order)))

    @cached_property
    def _taking(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Axes of ``y`` with the aligned ones in front, and where the rest of it is taken from.

        Elements of ``y`` find their position along the other axes of the group, flattened, in the
        same way for every index of the aligned axes.
        """
        elements = np.asarray(self.alignment.elements)
        order = (*self._along, *(i for i in range(elements.ndim) if i not in self._along))
        first = elements.transpose(order)[(0,) * len(self._along)].reshape(-1)
        places = numbered(self.alignment.result, self._others).reshape(-1)
        return order, places[np.maximum(first, 0)]

    def sum_to_y(self, array: jax.Array, lead: int) -> jax.Array:
        """Sum [*lead, *E, *Y] over the axes ``E``."""
        return array.sum(tuple(range(lead, lead + len(self.extra)))) if self.extra else array

    def contract(self, x: Any, dy: jax.Array, operands: Sequence[Any], parts: int) -> Arrays:
        """:meth:`Operation.contract` of ``dy`` [K, *E, *Y].

        Where an operation has no axis of examples, the first of the axes ``E`` is in parts.
        """

        def run(dy: jax.Array, parts: int = 1) -> Arrays:
            return self.operation.contract(x, self.sum_to_y(dy, 1), operands, parts)

        if fits_parts(self.extra, parts) and not self.operation.in_parts(parts):
            return jax.vmap(run)(split(dy, 1, parts))
        return run(dy, parts)


def added_up(links: Sequence[Link], info: ModuleInfo) -> dict[int, int]:
    """For each link, by index, the first one whose ``y`` is a term of the same sum, and only that.

    Such links have the same ``f``.
    """
    ends = {*filter(versions.is_var, info.jaxpr.outvars)}
    readers = defaultdict[Any, list[Any]](list)
    for eqn in info.eqns:
        for atom in filter(versions.is_var, eqn.invars):
            readers[atom].append(eqn)
    first: dict[Any, int] = {}
    found: dict[int, int] = {}
    for link in links:
        total = link.relation.y_var
        while total not in ends and len(readers[total]) == 1:
            (eqn,) = readers[total]
            if eqn.primitive is not jax.lax.add_p or eqn.outvars[0].aval != total.aval:
                break
            total = eqn.outvars[0]
        found[link.index] = first.setdefault((link.group.index, total), link.index)
    return found


def _after(lead: int, axes: Iterable[int]) -> tuple[int, ...]:
    """``lead`` axes, and then these of the rest."""
    return (*range(lead), *(lead + int(k) for k in axes))
