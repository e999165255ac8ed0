# SPDX-License-Identifier: Apache-2.0
"""Which positions of a result depend on which positions of a source.

The algorithms need derivatives such as ``d h[p] / d y[p]``. One sweep of reverse mode (or of
forward mode) with all-ones gives them *if and only if* no two of them are added up. This module
decides that from the structure of the program, in two ways:

- along axes: each axis of the source (of size above one) is a symbol, which is carried from
  variable to variable and *lost* where an equation mixes positions along it (see
  ``_position_rules``);
- element by element, where axes are cut, joined or permuted (see ``_element_map``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...base import versions
from ...base.versions import JaxprEqn, Var
from ..depends import differentiable
from .axes import Labels, labels_of
from .elements import NOTHING, element_map


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the axes of a source lie in the position axes of a result.

    Attributes
    ----------
    source, result
        Shapes of the positions.
    axes
        ``axes[i]`` is the axis of the result that the source's axis ``i`` runs along; ``None`` for
        an axis of size one and for one along which positions are mixed.
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

    @cached_property
    def mixed(self) -> tuple[int, ...]:
        """Axes of the source (of size above one) along which positions are mixed."""
        if self.elements is not None:
            return ()
        return tuple(i for i, n in enumerate(self.source) if n > 1 and self.axes[i] is None)

    @cached_property
    def extra(self) -> tuple[int, ...]:
        """Axes of the result (of size above one) that no axis of the source runs along."""
        if self.elements is not None:
            return ()
        return tuple(k for k, n in enumerate(self.result) if n > 1 and k not in self.axes)

    @property
    def position_wise(self) -> bool:
        """Whether every position of the result depends on one position of the source."""
        return not self.mixed

    @cached_property
    def is_identity(self) -> bool:
        """Whether every position of the source reaches the same position of the result only."""
        if self.elements is not None:
            own = np.arange(self.elements.size).reshape(self.source)
            return bool(np.all((self.elements == own) | (self.elements == NOTHING)))
        return self.source == self.result and self.kept == frozenset(range(len(self.source)))

    @cached_property
    def kept(self) -> frozenset[int]:
        """Axes of size one, and those that run along the axis of the same number."""
        return frozenset(
            i
            for i, n in enumerate(self.source)
            if i < len(self.result) and n == self.result[i] and (n == 1 or self.axes[i] == i)
        )


def align(
    eqns: Sequence[JaxprEqn], source: Var, targets: Sequence[Var], ndim: int, source_ndim: int
) -> Alignment | None:
    """How ``source`` lies in the targets; ``None`` when it reaches none of them.

    Parameters
    ----------
    eqns
        The equations between the source and the targets, in order.
    source
        The variable to follow.
    targets
        The variables to reach; their positions have one shape.
    ndim, source_ndim
        How many leading axes of the targets, and of the source, are positions. (The axes behind
        them hold the several states of one position.)
    """
    labels, offence = _follow(eqns, source, source_ndim)
    reached = [labels[target][:ndim] for target in targets if target in labels]
    if not reached:
        return None
    shape, result = source.aval.shape[:source_ndim], targets[0].aval.shape[:ndim]
    axes = tuple(_place(i, reached) for i in range(source_ndim))
    if not Alignment(shape, result, axes).mixed:
        return Alignment(shape, result, axes)
    elements = element_map(eqns, source, targets, ndim, source_ndim)
    return Alignment(shape, result, axes, offence or eqns[-1], elements)


def _place(symbol: int, reached: Sequence[Labels]) -> int | None:
    """The axis that carries a symbol in every label, if it is the same in all."""
    places = {label.index(symbol) if symbol in label else None for label in reached}
    return places.pop() if len(places) == 1 else None


def _follow(
    eqns: Sequence[JaxprEqn], source: Var, source_ndim: int
) -> tuple[dict[Var, Labels], JaxprEqn | None]:
    """Labels of every variable behind the source, and the first equation that loses a symbol."""
    shape = source.aval.shape[:source_ndim]
    first = tuple(i if n > 1 else None for i, n in enumerate(shape))
    labels: dict[Var, Labels] = {source: first + (None,) * (source.aval.ndim - source_ndim)}
    offence = None
    for eqn in eqns:
        operands = [labels.get(a) if versions.is_var(a) else None for a in eqn.invars]
        if all(o is None for o in operands) or not differentiable(eqn):
            continue
        before = {s for o in operands if o is not None for s in o if s is not None}
        for var, label in zip(eqn.outvars, labels_of(eqn, operands), strict=True):
            if label is not None and versions.is_float(var.aval):
                labels[var] = label
                if offence is None and before - set(label):
                    offence = eqn
    return labels, offence
