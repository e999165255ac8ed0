# SPDX-License-Identifier: Apache-2.0
"""How the old values of a hidden group lead to its new ones: what ``D`` is the diagonal of.

The *recurrence scope* says which paths count:

- ``'diagonal'``: those that cross no ETP operation;
- ``'coupled'``: a path may cross any of them until it meets its first new value of the group. From
  there on it may not: credit that leaves a new value through an ETP operation is in the learning
  signal of the same step already.

Either way a path ends at the new values of other groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import differentiable
from ..jaxprs.positions.alignment import align
from .groups import HiddenGroup, member_of
from .module_info import ModuleInfo
from .near import is_barrier

SCOPES = ("diagonal", "coupled")


@dataclass(frozen=True, eq=False)
class Transition:
    """The transition of a group within the recurrence scope.

    Attributes
    ----------
    mixed
        Axes of the positions along which positions are mixed: ``D`` is the block diagonal of the
        Jacobian, computed position by position along them. Empty: one sweep gives all of it.
    offence
        The first equation that mixes positions.
    program, free
        In the ``'coupled'`` scope, the transition as a closed jaxpr of the variables ``free`` and
        then the old values; ``None`` otherwise (the equations of the cone are it).
    """

    mixed: tuple[int, ...]
    offence: JaxprEqn | None
    program: Jaxpr | None = None
    free: tuple[Var, ...] = ()


def check_scope(scope: str) -> str:
    """``scope``, if there is such a recurrence scope."""
    if scope not in SCOPES:
        raise ValueError(f"recurrence_scope must be one of {SCOPES}, got {scope!r}")
    return scope


def near_transition(group: HiddenGroup, eqns: Sequence[JaxprEqn]) -> Transition:
    """The transition along the equations of a group's cone."""
    return _classified(group, eqns, group.hidden_invars, group.hidden_outvars)


def _classified(
    group: HiddenGroup, eqns: Sequence[JaxprEqn], olds: Sequence[Var], news: Sequence[Var]
) -> Transition:
    """Along which axes positions are mixed, and by which equation."""
    mixed: set[int] = set()
    offence = None
    for old in olds:
        found = align(eqns, old, news, group.ndim, group.ndim)
        if found is not None and not found.is_identity:
            mixed |= set(range(group.ndim)) - found.kept
            offence = offence or found.offence or eqns[-1]
    return Transition(tuple(sorted(mixed)), offence)


# --- coupled ------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """Run equation ``eqn``; ``crossed``: on paths that have an ETP operation still to cross."""

    eqn: int
    crossed: bool


def coupled_transition(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...], group: HiddenGroup
) -> Transition | None:
    """The transition of a group with its ETP operations; ``None`` when it is structurally zero."""
    return _CoupledPlanner(minfo, groups, group).transition()


class _CoupledPlanner:
    """Collects the equations of a coupled transition, each in the modes in which it is needed."""

    def __init__(
        self, minfo: ModuleInfo, groups: tuple[HiddenGroup, ...], group: HiddenGroup
    ) -> None:
        self.eqns = minfo.eqns
        self.group = group
        self.member = member_of(groups)
        self.producer = {v: i for i, eqn in enumerate(minfo.eqns) for v in eqn.outvars}

    def read(self, atom: Atom, crossed: bool) -> _Step | None:
        """The step that computes an operand, or ``None`` when it is held constant or an input."""
        if (
            not versions.is_var(atom)
            or not versions.is_float(atom.aval)
            or atom not in self.producer
        ):
            return None
        met = self.member.get(atom)
        if met is not None and (crossed or met != self.group.index):
            return None
        i = self.producer[atom]
        if not differentiable(self.eqns[i]):
            return None
        return _Step(i, crossed or is_barrier(self.eqns[i]))

    def operands(self, step: _Step) -> list[_Step | None]:
        return [self.read(atom, step.crossed) for atom in self.eqns[step.eqn].invars]

    def steps(self) -> tuple[_Step, ...]:
        """The steps on paths from an old value to a new one, in order."""
        needed = {s for v in self.group.hidden_outvars if (s := self.read(v, False)) is not None}
        for i in range(len(self.eqns) - 1, -1, -1):
            for step in (_Step(i, False), _Step(i, True)):
                if step in needed:
                    needed.update(s for s in self.operands(step) if s is not None)
        moving: dict[_Step, None] = {}
        olds = set(self.group.hidden_invars)
        for step in sorted(needed):
            atoms = [a for a in self.eqns[step.eqn].invars if versions.is_var(a)]
            if any(a in olds for a in atoms) or any(s in moving for s in self.operands(step)):
                moving[step] = None
        return tuple(moving)

    def transition(self) -> Transition | None:
        steps = self.steps()
        news = [self.read(v, False) for v in self.group.hidden_outvars]
        if not any(s in steps for s in news):
            return None
        free = self._free(steps)
        program = self._program(steps, free)
        olds = program.invars[len(free) :]
        found = _classified(self.group, program.eqns, olds, program.outvars)
        return Transition(found.mixed, found.offence, program, free)

    def _free(self, steps: Sequence[_Step]) -> tuple[Var, ...]:
        """Variables that are held constant."""
        inside, olds = set(steps), set(self.group.hidden_invars)
        read = [(a, self.read(a, s.crossed)) for s in steps for a in self.eqns[s.eqn].invars]
        read += [(v, self.read(v, False)) for v in self.group.hidden_outvars]
        constant = (a for a, s in read if versions.is_var(a) and s not in inside and a not in olds)
        return tuple(dict.fromkeys(constant))

    def _program(self, steps: Sequence[_Step], free: Sequence[Var]) -> Jaxpr:
        def run(held: Sequence[Any], olds: Sequence[Any]) -> list[Any]:
            values = dict(zip((*free, *self.group.hidden_invars), (*held, *olds), strict=True))
            found: dict[tuple[Var, bool], Any] = {}

            def value(atom: Atom, crossed: bool) -> Any:
                if not versions.is_var(atom):
                    return atom.val
                source = self.read(atom, crossed)
                inner = None if source is None else found.get((atom, source.crossed))
                return values[atom] if inner is None else inner

            for step in steps:
                eqn = self.eqns[step.eqn]
                results = versions.bind_equation(eqn, [value(a, step.crossed) for a in eqn.invars])
                for var, result in zip(eqn.outvars, results, strict=True):
                    found[var, step.crossed] = result
            return [value(v, False) for v in self.group.hidden_outvars]

        return versions.make_jaxpr(
            run, [v.aval for v in free], [v.aval for v in self.group.hidden_invars]
        )
