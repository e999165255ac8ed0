# SPDX-License-Identifier: Apache-2.0
"""The part of a step between the operations of a hidden group and its new values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import _jax
from .._jax import JaxprEqn, Var
from .._jaxpr import Along, depends, slice_to
from ._groups import HiddenGroup, is_barrier, member_of, near_paths
from ._module_info import ModuleInfo
from ._transitions import Transition, coupled_transition, near_transition


@dataclass(frozen=True, eq=False)
class Cone:
    """The part of a step that leads to a hidden group without crossing an ETP operation.

    Its inputs are the group's old values, the outputs ``y`` of its relations, and ``free``
    variables, which are held constant. ``transition`` is that of the group; ``None`` when it is
    structurally zero.
    """

    group: int
    eqns: tuple[int, ...]
    free: tuple[Var, ...]
    old_reaches: bool
    transition: Transition | None


def find_cone(
    minfo: ModuleInfo,
    groups: tuple[HiddenGroup, ...],
    group: HiddenGroup,
    ys: Sequence[Var],
    scope: str = "diagonal",
) -> Cone:
    """The cone of a group that is driven by the operations with outputs ``ys``.

    Parameters
    ----------
    minfo, groups, group
        The traced model, its groups and the one in question.
    ys
        Outputs of the operations that drive the group; without any, no transition is needed.
    scope
        The recurrence scope.
    """
    member = member_of(groups)
    sources = {*group.hidden_invars, *ys}
    passes_near = near_paths(minfo)

    def cut(var: Var) -> bool:
        return member.get(var, group.index) != group.index

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        return passes_near(i, eqn, operand) and not (_jax.is_var(atom) and cut(atom))

    behind = slice_to(minfo.eqns, group.hidden_outvars, enters, Along.DERIVATIVES)
    marks = depends(
        [minfo.eqns[i] for i in behind],
        {var: frozenset({var}) for var in group.hidden_invars},
        enters,
        emits=lambda i, eqn: frozenset(eqn.outvars) & frozenset(ys),
        along=Along.DERIVATIVES,
    )
    eqns = tuple(
        i
        for i in behind
        if not is_barrier(minfo.eqns[i]) and any(marks.get(var) for var in minfo.eqns[i].outvars)
    )
    inner = {var for i in eqns for var in minfo.eqns[i].outvars} | sources
    read = [atom for i in eqns for atom in minfo.eqns[i].invars if _jax.is_var(atom)]
    free = dict.fromkeys(var for var in (*read, *group.hidden_outvars) if var not in inner)
    old_reaches = any(
        old in marks.get(new, frozenset())
        for new in group.hidden_outvars
        for old in group.hidden_invars
    )
    transition = None
    if ys and scope == "coupled":
        transition = coupled_transition(minfo, groups, group)
    elif ys and old_reaches:
        transition = near_transition(group, [minfo.eqns[i] for i in eqns])
    return Cone(group.index, eqns, tuple(free), old_reaches, transition)
