# SPDX-License-Identifier: Apache-2.0
"""Which ETP operation reaches which hidden group, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..base import versions
from ..base.types import Path
from ..base.versions import JaxprEqn, Var
from ..jaxprs.depends import Along, depends
from ..jaxprs.sites import etp_equations
from .groups import HiddenGroup, member_of
from .module_info import ModuleInfo
from .near import is_barrier, near_paths


def near_reach(minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]) -> dict[int, frozenset[int]]:
    """For each ETP equation: the groups it reaches without crossing another one.

    A path that passes a hidden state of one group ends there for all the others: the rest of it
    belongs to that state's learning signal.
    """
    member = member_of(groups)

    def through(var: Var, marks: frozenset[Any]) -> frozenset[Any]:
        g = member.get(var)
        if g is None:
            return marks
        return frozenset((i, g) for i, via in marks if via in (None, g))

    etp = etp_equations(minfo.eqns)
    marks = depends(
        minfo.eqns,
        {},
        near_paths(minfo),
        emits=lambda i, eqn: frozenset({(i, None)}) if i in etp else frozenset(),
        through=through,
        along=Along.DERIVATIVES,
    )
    reached: dict[int, set[int]] = {i: set() for i in etp}
    for var, g in member.items():
        for i, via in marks.get(var, frozenset()):
            if via == g:
                reached[i].add(g)
    return {i: frozenset(found) for i, found in reached.items()}


def far_reach(minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]) -> dict[int, frozenset[int]]:
    """For each ETP equation: the groups it reaches by any differentiable path."""
    etp = etp_equations(minfo.eqns)
    marks = depends(
        minfo.eqns,
        {},
        emits=lambda i, eqn: frozenset({i}) if i in etp else frozenset(),
        along=Along.DERIVATIVES,
    )
    reached: dict[int, set[int]] = {}
    for var, g in member_of(groups).items():
        for i in marks.get(var, frozenset()):
            reached.setdefault(i, set()).add(g)
    return {i: frozenset(found) for i, found in reached.items()}


def crossed_reach(minfo: ModuleInfo) -> dict[Var, frozenset[int]]:
    """For each variable: the ETP equations that reach it through a further one, in one sweep."""
    etp = set(etp_equations(minfo.eqns))
    behind = depends(
        minfo.eqns,
        {},
        emits=lambda i, eqn: frozenset({i}) if i in etp else frozenset(),
        along=Along.DERIVATIVES,
    )

    def crossing(i: int, eqn: JaxprEqn) -> frozenset[int]:
        if not is_barrier(eqn):
            return frozenset()
        return frozenset().union(*(behind.get(a, ()) for a in eqn.invars if versions.is_var(a)))

    return depends(minfo.eqns, {}, emits=crossing, along=Along.DERIVATIVES)


def classify(
    crossed: Mapping[Var, frozenset[int]], eqn_index: int, groups: Sequence[HiddenGroup]
) -> dict[Path, str]:
    """Which states an operation also reaches through another ETP operation."""
    return {
        path: "partial" if eqn_index in crossed.get(var, ()) else "all_direct"
        for group in groups
        for path, var in zip(group.hidden_paths, group.hidden_outvars, strict=True)
    }
