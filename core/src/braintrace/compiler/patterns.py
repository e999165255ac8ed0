# SPDX-License-Identifier: Apache-2.0
"""Which states of a group with a delay line depend on which: the steps of a line, each by itself.

A line of ``n`` steps is one array, so that what depends on what between variables would say that
any step of it may depend on any other. Most do not: a shift takes each from the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..base.versions import JaxprEqn, Var
from ..jaxprs.positions.elements import reached
from ..jaxprs.positions.places import NOTHING, Numbers, Places, blank
from .groups import LAST, HiddenGroup


def has_lines(group: HiddenGroup) -> bool:
    """Whether one of the members is a delay line."""
    return any(axis != LAST for axis in group.state_axes)


def passing_by_step(
    group: HiddenGroup, eqns: Sequence[JaxprEqn], olds: Sequence[Var], news: Sequence[Var]
) -> tuple[tuple[bool, ...], ...]:
    """Which new states depend on which old ones [S][S], along equations between them."""
    found = reached(eqns, olds, zip(news, _own_states(group, news), strict=True))
    columns: list[np.ndarray] = []
    every = zip(found, olds, group.state_counts, group.state_axes, strict=True)
    for places, old, count, axis in every:
        if places is None:
            columns.append(np.zeros((group.num_state, count), bool))
            continue
        single = old.aval.shape == group.varshape
        along = None if single else axis % old.aval.ndim
        rows = [_any(numbers, along) for numbers in places]
        columns.append(np.stack([np.broadcast_to(row, (count,)) for row in rows]))
    return tuple(tuple(map(bool, row)) for row in np.concatenate(columns, 1))


def driven_by_step(
    group: HiddenGroup, eqns: Sequence[JaxprEqn], ys: Sequence[Var]
) -> dict[Var, tuple[bool, ...]]:
    """Which new states depend on each ``y`` [S]."""
    news = group.hidden_outvars
    found = reached(eqns, ys, zip(news, _own_states(group, news), strict=True))
    none = (False,) * group.num_state
    return {
        y: none if places is None else tuple(bool(_any(numbers, None)[0]) for numbers in places)
        for y, places in zip(ys, found, strict=True)
    }


def _own_states(group: HiddenGroup, news: Sequence[Var]) -> list[Places]:
    """Of each member, numbers for each state of the group: zero where a member holds that state."""
    found, first = [], 0
    for new, count, axis in zip(news, group.state_counts, group.state_axes, strict=True):
        nothing, shape = blank(new.aval.ndim), [1] * new.aval.ndim
        if new.aval.shape != group.varshape:
            shape[axis] = count
        every = np.where(np.eye(count, dtype=bool), 0, NOTHING).reshape(count, *shape)
        rest = group.num_state - first - count
        found.append((*(nothing,) * first, *every, *(nothing,) * rest))
        first += count
    return found


def _any(numbers: Numbers, along: int | None) -> np.ndarray:
    """Whether anything is reached, for each index of an axis."""
    others = tuple(k for k in range(numbers.ndim) if k != along)
    return np.atleast_1d((numbers != NOTHING).any(others))
