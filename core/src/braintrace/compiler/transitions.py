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
from typing import Any

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along, depends
from ..jaxprs.positions.alignment import align
from .contexts import Read, plan_backward, run_in_contexts
from .groups import Groups, HiddenGroup, member_of
from .near import is_barrier

SCOPES = ("diagonal", "coupled")
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


def check_scope(scope: str) -> str:
    """``scope``, if there is such a recurrence scope."""
    if scope not in SCOPES:
        raise ValueError(f"recurrence_scope must be one of {SCOPES}, got {scope!r}")
    return scope


def mixing(
    group: HiddenGroup, eqns: Sequence[JaxprEqn], olds: Sequence[Var], news: Sequence[Var]
) -> tuple[tuple[int, ...], JaxprEqn | None]:
    """Axes along which equations mix the positions of a group, and the first that does."""
    mixed: set[int] = set()
    offence = None
    for old in olds:
        found = align(eqns, old, news, group.ndim, group.ndim)
        if found is not None and not found.is_identity:
            mixed |= set(range(group.ndim)) - found.kept
            offence = offence or found.offence or eqns[-1]
    return tuple(sorted(mixed)), offence if mixed else None


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
    moving = depends(eqns, olds, through=through, along=Along.DERIVATIVES)

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
