# SPDX-License-Identifier: Apache-2.0
"""Which positions of a result depend on which positions of a source.

The algorithms need derivatives such as ``d h[p] / d y[p]``. One sweep of reverse mode (or of
forward mode) with all-ones gives them *if and only if* no two of them are added up. That is decided
from the structure of the program: every element of the source has, along each axis of the result,
the index of the positions that depend on it (see ``elements``). Where that is its own index along
an axis of the source, the source runs along that axis of the result; where axes are cut, joined or
permuted, an element may still reach a single position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ...base import versions
from ...base.versions import JaxprEqn, Var
from .elements import reached
from .places import NOTHING, axes_along, flat, merge_axes, own_places


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the axes of a source lie in the position axes of a result.

    Attributes
    ----------
    source, result
        Shapes of the positions.
    axes
        ``axes[i]`` is the axis of the result that the source's axis ``i`` runs along; ``None`` for
        an axis of size one and for one along which positions are mixed. Where there are
        ``elements``, these are the same at every index of such an axis, but for that index.
    offence
        The first equation that mixes positions, if there is one.
    elements
        For each element of the source, the only element of the result (by its flat index) that
        depends on it, or -1; ``None`` when elements reach several.
    """

    source: tuple[int, ...]
    result: tuple[int, ...]
    axes: tuple[int | None, ...]
    offence: JaxprEqn | None = None
    elements: np.ndarray | None = None

    @property
    def mixed(self) -> tuple[int, ...]:
        """Axes of the source (of size above one) along which positions are mixed."""
        if self.elements is not None:
            return ()
        return tuple(i for i, n in enumerate(self.source) if n > 1 and self.axes[i] is None)

    @property
    def extra(self) -> tuple[int, ...]:
        """Axes of the result (of size above one) that no axis of the source runs along."""
        if self.elements is not None:
            return ()
        return tuple(k for k, n in enumerate(self.result) if n > 1 and k not in self.axes)

    @property
    def is_identity(self) -> bool:
        """Whether every position of the source reaches the same position of the result only."""
        if self.elements is not None:
            own = np.arange(self.elements.size).reshape(self.source)
            return bool(np.all((self.elements == own) | (self.elements == NOTHING)))
        return self.source == self.result and self.kept == frozenset(range(len(self.source)))

    @property
    def kept(self) -> frozenset[int]:
        """Axes of size one, and those that run along the axis of the same number."""
        return frozenset(
            i
            for i, n in enumerate(self.source)
            if i < len(self.result) and n == self.result[i] and (n == 1 or self.axes[i] == i)
        )


def align(
    eqns: Sequence[JaxprEqn],
    source: Var,
    targets: Sequence[Var],
    ndim: int,
    source_ndim: int,
    states_along: Mapping[Var, int] = MappingProxyType({}),
) -> Alignment | None:
    """How ``source`` lies in the targets; ``None`` when it reaches none of them.

    ``eqns`` are those between them, in order. The first ``ndim`` axes of the targets (of one shape
    for all), and the first ``source_ndim`` axes of the source, are positions; the axes behind them
    hold the several states of one position. Where ``states_along`` names a variable, its states lie
    along that axis, and all others are positions.
    """

    def axes_of(v: Var, count: int) -> tuple[int, ...]:
        every = range(v.aval.ndim)
        along = states_along.get(v)
        return tuple(every[:count] if along is None else (k for k in every if k != along))

    ends = [(v, own_places(v.aval.shape, axes_of(v, ndim))) for v in targets]
    (found,) = reached(eqns, [source], ends)
    if found is None:
        return None
    own = axes_of(source, source_ndim)
    shape = tuple(source.aval.shape[k] for k in own)
    result = tuple(targets[0].aval.shape[k] for k in axes_of(targets[0], ndim))
    places = tuple(merge_axes(c, {*range(c.ndim)}.difference(own)) for c in found)
    along = axes_along(places, result, shape)
    whole = Alignment(shape, result, tuple(map(along.get, range(source_ndim))))
    if not whole.mixed:
        return whole
    offence = _first_loss(eqns, source, own) or eqns[-1]
    whole, elements = replace(whole, offence=offence), flat(places, result)
    if elements is None:
        return whole
    elements = np.broadcast_to(elements, shape)
    return replace(whole, axes=_uniform(whole.axes, elements, result), elements=elements)


def _uniform(
    axes: Sequence[int | None], elements: np.ndarray, result: Sequence[int]
) -> tuple[int | None, ...]:
    """Axes at whose every index the elements reach the same positions, but for that index."""

    def runs_along(i: int, k: int) -> bool:
        step = math.prod(result[k + 1 :])
        own = np.arange(elements.shape[i]).reshape(-1, *(1,) * (elements.ndim - i - 1))
        rest = np.where(elements == NOTHING, NOTHING, elements - step * own)
        return bool((rest == rest.take([0], axis=i)).all())

    return tuple(k if k is not None and runs_along(i, k) else None for i, k in enumerate(axes))


def _first_loss(eqns: Sequence[JaxprEqn], source: Var, own: Sequence[int]) -> JaxprEqn | None:
    """The first equation whose result does not run along all of the source's axes."""
    shape = source.aval.shape
    axes: dict[Var, tuple[Any, ...]]
    axes = {source: tuple(i for i in own if shape[i] > 1)}
    for eqn in eqns:
        for var in axes.keys() & {a for a in eqn.invars if versions.is_var(a)}:
            for out in eqn.outvars:
                result = out.aval.shape
                (found,) = reached([eqn], [var], [(out, own_places(result))])
                if found is not None:
                    along = axes_along(found, result, var.aval.shape)
                    moved = tuple(map(along.get, axes[var]))
                    if None in moved or axes.setdefault(out, moved) != moved:
                        return eqn
    return None
