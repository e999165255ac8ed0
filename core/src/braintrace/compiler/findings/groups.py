# SPDX-License-Identifier: Apache-2.0
"""Findings about hidden groups and their transitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import show_path
from ...base.versions import JaxprEqn, Var
from ...jaxprs.depends import Along, depends
from ..cones import Cone
from ..groups import HiddenGroup, member_of
from ..module_info import ModuleInfo
from ..near import is_barrier, near_paths
from ..transitions import near_transition
from .record import Kind, Records, described, info, listed, warning

# --- groups -------------------------------------------------------------------------------------


def transition_records(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...], cones: Sequence[Cone]
) -> Records:
    """What is peculiar about the transitions of the groups that have traces.

    ``cones`` are those of these groups.
    """
    crossed = _crossed_by_transitions(minfo, groups)
    records: Records = []
    for cone in cones:
        group, cut = groups[cone.group], [minfo.eqns[i] for i in crossed[cone.group]]
        records.extend(_several_results(group, eqn) for eqn in _with_several_results(group, cone))
        if len(group.hidden_paths) > 1:
            records.append(_merged(group))
        records.extend(_left_out(group, cone, cut))
    return records


def _left_out(group: HiddenGroup, cone: Cone, cut: Sequence[JaxprEqn]) -> Records:
    """What the old values do to the new ones outside of ``D``; ``cut`` are the ETP equations."""
    found: Records = []
    if cone.transition is None and cut:
        found.append(_structurally_zero(group))
    elif cone.transition is not None and cone.transition.program is None and cut:
        found.append(_bounded(group, cut))
    mixing = _mixing_of_its_own(group, cone)
    return found if mixing is None else [transition_not_position_wise(group, mixing), *found]


def _mixing_of_its_own(group: HiddenGroup, cone: Cone) -> JaxprEqn | None:
    """The equation that mixes positions on a way from old to new values without an ETP operation.

    What mixes in an ETP operation is left out by the choice of the recurrence scope.
    """
    near = cone.transition
    if near is not None and near.program is not None:
        eqns = [group.module_info.eqns[i] for i in cone.eqns]
        near = near_transition(group, eqns) if cone.old_reaches else None
    return None if near is None or not near.mixed else near.offence


def _about(group: HiddenGroup, **facts: Any) -> dict[str, Any]:
    """What every record about a group holds; it stands where its first new value is computed."""
    eqn = group.module_info.producer(group.hidden_outvars[0])
    return {"eqn": eqn, "hidden_paths": group.hidden_paths} | facts


def _merged(group: HiddenGroup) -> CompilationRecord:
    return info(
        Kind.HIDDEN_GROUP_MERGED,
        f"{listed(group.hidden_paths)} recur together as group {group.index}",
        **_about(group, context={"group": group.index}),
        remedy="Nothing to do; states of different items of a list stay apart",
    )


def _structurally_zero(group: HiddenGroup) -> CompilationRecord:
    return warning(
        Kind.TRANSITION_STRUCTURALLY_ZERO,
        f"D is structurally zero for group {group.index} ({listed(group.hidden_paths)}): its old "
        "value reaches its new value only through ETP operations, so D-RTRL is truncated BPTT of "
        "one step there",
        **_about(group, context={"group": group.index}),
        remedy="A leak or a gate on the state gives the trace something to carry, and "
        "recurrence_scope='coupled' keeps the diagonal of the ETP operations",
    )


def transition_not_position_wise(group: HiddenGroup, offence: JaxprEqn) -> CompilationRecord:
    """A transition that mixes positions: its off-diagonal part is dropped."""
    return warning(
        Kind.TRANSITION_NOT_POSITION_WISE,
        f"the transition of group {group.index} ({listed(group.hidden_paths)}) mixes positions at "
        f"{described(offence)}: D is the true diagonal of its Jacobian, and credit between "
        "positions is left out",
        **_about(group, eqn=offence, context={"group": group.index}),
        remedy="Make a recurrent product an ETP operation, which leaves it out by choice, or keep "
        "the path from old to new values element-wise",
    )


def _with_several_results(group: HiddenGroup, cone: Cone) -> list[JaxprEqn]:
    eqns = [group.module_info.eqns[i] for i in cone.eqns]
    return [eqn for eqn in eqns if sum(versions.is_float(var.aval) for var in eqn.outvars) > 1]


def _several_results(group: HiddenGroup, eqn: JaxprEqn) -> CompilationRecord:
    return info(
        Kind.MULTI_OUTPUT_PRIMITIVE_DETECTED,
        f"{eqn.primitive.name!r} on the way to group {group.index} ({listed(group.hidden_paths)}) "
        f"has {len(eqn.outvars)} results, and each is followed by itself",
        **_about(group, eqn=eqn, context={"group": group.index, "results": len(eqn.outvars)}),
        remedy="Nothing to do, unless positions are reported as mixed there",
    )


def _bounded(group: HiddenGroup, eqns: Sequence[JaxprEqn]) -> CompilationRecord:
    at = ", ".join(map(described, eqns))
    return info(
        Kind.TRANSITION_TAIL_BOUNDED,
        f"the transition of group {group.index} ({listed(group.hidden_paths)}) ends at {at}: what "
        "its old value does to its new one through them is left out of D",
        **_about(group, eqn=eqns[0], context={"group": group.index, "operations": len(eqns)}),
        remedy="recurrence_scope='coupled' keeps its diagonal",
    )


def _crossed_by_transitions(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]
) -> dict[int, list[int]]:
    """Per group, the ETP equations between its old and its new values, found in two sweeps."""
    member = member_of(groups)

    def own(var: Var, marks: frozenset[Any]) -> frozenset[Any]:
        g = member.get(var)
        return marks if g is None else frozenset(m for m in marks if m[0] == g)

    olds = {v: frozenset({(g.index, None)}) for g in groups for v in g.hidden_invars}
    behind = depends(minfo.eqns, olds, through=own, along=Along.DERIVATIVES)

    def crossing(i: int, eqn: JaxprEqn) -> frozenset[Any]:
        arriving = (behind.get(a, ()) for a in eqn.invars if versions.is_var(a))
        return frozenset((g, i) for marks in arriving for g, _ in marks if is_barrier(eqn))

    crossed = depends(minfo.eqns, {}, emits=crossing, through=own, along=Along.DERIVATIVES)
    return {
        group.index: sorted(
            {i for v in group.hidden_outvars for g, i in crossed.get(v, ()) if g == group.index}
        )
        for group in groups
    }


def cross_group_records(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...], driven: Sequence[set[int]]
) -> Records:
    """Where a group that has traces is read by another one without an ETP operation."""
    member = member_of(groups)
    sources = {v: g.index for g in groups if driven[g.index] for v in g.hidden_invars}
    marks = depends(
        minfo.eqns,
        {v: frozenset({g}) for v, g in sources.items()},
        near_paths(minfo),
        emits=lambda i, eqn: frozenset(
            member[v] for v in eqn.outvars if v in member and driven[member[v]]
        ),
        along=Along.DERIVATIVES,
    )
    found = {
        (g, group.index)
        for group in groups
        for var in group.hidden_outvars
        for g in marks.get(var, frozenset())
        if g != group.index
    }
    return [_crosses(groups[g], groups[to]) for g, to in sorted(found)]


def _crosses(group: HiddenGroup, reader: HiddenGroup) -> CompilationRecord:
    return warning(
        Kind.CROSS_GROUP_DEPENDENCE,
        f"group {reader.index} ({show_path(reader.hidden_paths[0])}) reads group {group.index} "
        f"({show_path(group.hidden_paths[0])}) without an ETP operation between them; traces do "
        "not carry credit from one group to another over time",
        **_about(
            reader,
            hidden_paths=(*reader.hidden_paths, *group.hidden_paths),
            context={"from": group.index, "to": reader.index},
        ),
        remedy="Put an ETP operation between the layers, or keep states that belong together in "
        "one layer and of one shape",
    )
