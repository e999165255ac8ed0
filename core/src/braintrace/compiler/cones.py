# SPDX-License-Identifier: Apache-2.0
"""The part of a step that leads to the new values of a group: the second pass.

Which paths from old to new values count, those that ``D`` is the diagonal of, is the *recurrence
scope*:

- ``'diagonal'``: those that cross no ETP operation;
- ``'coupled'``: a path may cross any of them until it meets its first new value of the group. From
  there on it may not: credit that leaves a new value through an ETP operation is in the learning
  signal of the same step already.

Either way a path ends at the new values of other groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along, depends, program_influences, slice_to
from .contexts import Read, plan_backward, run_in_contexts
from .groups import Groups, HiddenGroup, member_of, mixing
from .module_info import is_barrier
from .reach import Reach

SCOPES = ("diagonal", "coupled")
T = TypeVar("T")
Pattern = tuple[tuple[bool, ...], ...]
Contexts = frozenset[bool]
NEITHER, BOTH = Contexts(), Contexts({False, True})


@dataclass(frozen=True, eq=False)
class Transition:
    """The transition of a group within the recurrence scope.

    Attributes
    ----------
    mixed
        Axes of the positions along which positions are mixed: ``D`` is the block diagonal of the
        Jacobian, computed position by position along them. Empty: one sweep gives all of it.
    program, free
        In the ``'coupled'`` scope, the transition as a closed jaxpr of the variables ``free`` and
        then the old values; ``None`` otherwise (the equations of the cone are it).
    """

    mixed: tuple[int, ...]
    program: Jaxpr | None = None
    free: tuple[Var, ...] = ()


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

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        g = member.get(atom, group.index) if versions.is_var(atom) else group.index
        return g == group.index and group.module_info.near(i, eqn, operand)

    behind = slice_to(program, group.hidden_outvars, enters, Along.DERIVATIVES)
    marks = depends(
        [program[i] for i in behind],
        {var: frozenset({var}) for var in group.hidden_invars},
        enters,
        emits=lambda i, eqn: frozenset(eqn.outvars) & frozenset(ys),
        along=Along.DERIVATIVES,
    )
    moving = (i for i in behind if any(marks.get(var) for var in program[i].outvars))
    eqns = tuple(i for i in moving if not is_barrier(program[i]))
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


def check_scope(scope: str) -> str:
    """``scope``, if there is such a recurrence scope."""
    if scope not in SCOPES:
        raise ValueError(f"recurrence_scope must be one of {SCOPES}, got {scope!r}")
    return scope


def coupled_transition(groups: Groups, group: HiddenGroup) -> Transition | None:
    """The transition of a group with its ETP operations; ``None`` when it is structurally zero.

    An equation runs in the context ``False``, or ``True`` on paths that have an ETP operation
    still to cross, on which new values of the group are constants. The old values move only some
    variables, in one of the contexts or in both; all others are constants, too.
    """
    eqns, member = group.module_info.eqns, member_of(groups)
    crossing = {var for eqn in eqns if is_barrier(eqn) for var in eqn.outvars}

    def through(var: Var, contexts: Contexts) -> Contexts:
        if var in crossing:
            contexts = BOTH if True in contexts else NEITHER
        if var in member:
            return contexts - {True} if member[var] == group.index else NEITHER
        return contexts

    olds = dict.fromkeys(group.hidden_invars, BOTH)
    moving = group.module_info.credit(olds, through=through)

    def read(atom: Atom, crossed: bool) -> Read:
        moves = versions.is_var(atom) and crossed in moving.get(atom, NEITHER)
        if not moves or atom in olds:
            return Read(atom)
        return Read(atom, crossed or atom in crossing)

    def operands(i: int, crossed: bool) -> tuple[Read, ...]:
        return tuple(read(atom, crossed) for atom in eqns[i].invars)

    news = tuple(read(var, False) for var in group.hidden_outvars)
    steps = tuple(plan_backward(eqns, news, operands))[::-1]
    if not steps:
        return None
    reads = [*(ref for step in steps for ref in step.operands), *news]
    given = [ref.atom for ref in reads if ref.context is None and versions.is_var(ref.atom)]
    free = tuple(dict.fromkeys(var for var in given if var not in olds))

    def run(*values: Any) -> list[Any]:
        return run_in_contexts(eqns, steps, dict(zip((*free, *olds), values, strict=True)), news)

    program = versions.make_jaxpr(run, *(var.aval for var in (*free, *olds)))
    mixed, _ = mixing(group, program.eqns, program.invars[len(free) :], program.outvars)
    return Transition(mixed, program, free)
