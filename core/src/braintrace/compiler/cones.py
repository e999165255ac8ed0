# SPDX-License-Identifier: Apache-2.0
"""The part of a step between operations and the new values of a group: the second pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..base import versions
from ..base.versions import JaxprEqn, Var
from ..jaxprs.depends import Along, depends, program_influences, slice_to
from .groups import Groups, HiddenGroup, member_of
from .near import is_barrier, near_paths
from .reach import Reach
from .transitions import Transition, coupled_transition, mixing

T = TypeVar("T")
Pattern = tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, eq=False)
class Cone:
    """The part of a step that leads to a hidden group without crossing an ETP operation.

    Its inputs are the group's old values, the outputs ``y`` of its relations, and ``free``
    variables, which are held constant. ``transition`` is that of the group; ``None`` when it is
    structurally zero.

    Attributes
    ----------
    offence
        The first equation that mixes positions on the way from old to new values. (What mixes in
        an ETP operation is left out by the choice of the recurrence scope.)
    passing
        Which entries of ``D`` are not structurally zero, by new and old state [S][S].
    driving
        Which new states each ``y`` drives [S].
    """

    group: int
    eqns: tuple[int, ...]
    free: tuple[Var, ...]
    old_reaches: bool
    offence: JaxprEqn | None
    transition: Transition | None
    passing: Pattern
    driving: Mapping[Var, tuple[bool, ...]]


def find_cones(groups: Groups, reach: Sequence[Reach], scope: str) -> tuple[Cone, ...]:
    """The cones of all groups, within a recurrence scope."""
    ys = [[r.eqn.outvars[0] for r in reach if r.traced and g.index in r.near] for g in groups]
    return tuple(_cone(groups, *pair, scope) for pair in zip(groups, ys, strict=True))


def _cone(groups: Groups, group: HiddenGroup, ys: Sequence[Var], scope: str) -> Cone:
    """The cone of a group that is driven by the operations with outputs ``ys``.

    Without any of them, no transition is needed.
    """
    program, member = group.module_info.eqns, member_of(groups)
    near = near_paths(group.module_info)

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        g = member.get(atom, group.index) if versions.is_var(atom) else group.index
        return g == group.index and near(i, eqn, operand)

    behind = slice_to(program, group.hidden_outvars, enters, Along.DERIVATIVES)
    marks = depends(
        [program[i] for i in behind],
        {var: frozenset({var}) for var in group.hidden_invars},
        enters,
        emits=lambda i, eqn: frozenset(eqn.outvars) & frozenset(ys),
        along=Along.DERIVATIVES,
    )
    eqns = tuple(
        i
        for i in behind
        if not is_barrier(program[i]) and any(marks.get(var) for var in program[i].outvars)
    )
    inner = {*group.hidden_invars, *ys, *(var for i in eqns for var in program[i].outvars)}
    read = [atom for i in eqns for atom in program[i].invars if versions.is_var(atom)]
    free = dict.fromkeys(var for var in (*read, *group.hidden_outvars) if var not in inner)
    behind_new = [marks.get(new, frozenset()) for new in group.hidden_outvars]
    old_reaches = any(old in behind for behind in behind_new for old in group.hidden_invars)
    transition, offence = None, None
    if ys and old_reaches:
        between = [program[i] for i in eqns]
        mixed, offence = mixing(group, between, group.hidden_invars, group.hidden_outvars)
        transition = Transition(mixed)
    if ys and scope == "coupled":
        transition = coupled_transition(groups, group)
    passing = _passing(group, transition, behind_new)
    driving = {y: _by_state(group, [y in behind for behind in behind_new]) for y in ys}
    return Cone(group.index, eqns, tuple(free), old_reaches, offence, transition, passing, driving)


def _passing(
    group: HiddenGroup, transition: Transition | None, behind_new: Sequence[frozenset[Var]]
) -> Pattern:
    """Which old states (by column) are behind which new ones (by row)."""
    if transition is not None and transition.program is not None:
        first = len(transition.free)
        behind = program_influences(transition.program, Along.DERIVATIVES)
        rows = [[first + k in b for k in range(len(group.hidden_invars))] for b in behind]
    else:
        rows = [[old in behind for old in group.hidden_invars] for behind in behind_new]
    return _by_state(group, [_by_state(group, row) for row in rows])


def _by_state(group: HiddenGroup, members: Sequence[T]) -> tuple[T, ...]:
    """An entry per state, from one per member of the group."""
    pairs = zip(members, group.state_counts, strict=True)
    return tuple(entry for entry, count in pairs for _ in range(count))
