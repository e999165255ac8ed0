# SPDX-License-Identifier: Apache-2.0
"""Which hidden group every ETP operation reaches, and how: the first pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..base.versions import JaxprEqn, Var
from ..jaxprs.depends import Along, depends, slice_to
from ..jaxprs.sites import etp_equations
from .groups import Groups, member_of
from .module_info import ModuleInfo
from .near import is_barrier, near_paths
from .operands import TrainableOperand, weight_operands
from .program import Marks


@dataclass(frozen=True, eq=False)
class Reach:
    """An ETP equation whose output is read, and where that leads.

    Attributes
    ----------
    eqn_index, eqn
        The equation and its place in the program.
    operands
        Its operands but ``x``.
    near, far
        Groups that it reaches without crossing another ETP operation, and by any differentiable
        path. A path that passes a hidden state of one group is near to no other: the rest of it
        belongs to that state's learning signal.
    crossing
        New values of hidden states that it reaches through a further ETP operation.
    """

    eqn_index: int
    eqn: JaxprEqn
    operands: tuple[TrainableOperand, ...]
    near: frozenset[int]
    far: frozenset[int]
    crossing: frozenset[Var]

    @property
    def traced(self) -> bool:
        """Whether the operation becomes a relation."""
        return bool(self.near) and any(operand.leaves for operand in self.operands)


def find_reach(minfo: ModuleInfo, groups: Groups) -> tuple[Reach, ...]:
    """What the ETP equations of a step reach.

    Those whose output nothing reads are left out: ``vmap`` over functions with states leaves copies
    of equations behind that run for nothing.
    """
    eqns, member = minfo.eqns, member_of(groups)
    etp = {i: frozenset({(i, None)}) for i in etp_equations(eqns)}
    barriers = {var: i for i in etp if is_barrier(eqns[i]) for var in eqns[i].outvars}

    def starts(i: int, eqn: JaxprEqn) -> Marks:
        return etp.get(i, frozenset())

    def ends(var: Var, marks: Marks) -> Marks:
        g = member.get(var)
        return marks if g is None else frozenset((i, g) for i, via in marks if via in (None, g))

    def crosses(var: Var, marks: Marks) -> Marks:
        at = barriers.get(var)
        return marks if at is None else marks | {(i, True) for i, _ in marks if i != at}

    credit = Along.DERIVATIVES
    near = _turned(member, depends(eqns, {}, near_paths(minfo), starts, ends, credit))
    every = depends(eqns, {}, emits=starts, through=crosses, along=credit)
    far = _turned(member, every)
    needed = {*slice_to(eqns, minfo.jaxpr.outvars)}
    return tuple(
        Reach(
            i,
            eqns[i],
            tuple(weight_operands(minfo, i)),
            frozenset(member[var] for var in near[i]),
            frozenset(member[var] for var in far[i]),
            frozenset(var for var in far[i] if (i, True) in every[var]),
        )
        for i in etp
        if i in needed
    )


def _turned(news: Iterable[Var], marks: Mapping[Var, Marks]) -> dict[int, set[Var]]:
    """The new values that each equation reaches, from the marks of the equations behind each."""
    found: dict[int, set[Var]] = defaultdict(set)
    for var in news:
        for i, _ in marks.get(var, ()):
            found[i].add(var)
    return found
