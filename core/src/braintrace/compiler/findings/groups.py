# SPDX-License-Identifier: Apache-2.0
"""Findings about hidden groups and their transitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import show_path
from ...base.versions import JaxprEqn, Var
from ...jaxprs.depends import Along, depends
from ..cones import Cone
from ..found import Found
from ..groups import HiddenGroup, member_of
from ..near import is_barrier, near_paths
from ..program import Marks
from .record import Finding, Kind, described, info, warning

SEVERAL_RESULTS = info(
    Kind.MULTI_OUTPUT_PRIMITIVE_DETECTED,
    "{primitive!r} on the way to group {group} ({states}) has {results} results, and each is "
    "followed by itself",
    "Nothing to do, unless positions are reported as mixed there",
)
MERGED = info(
    Kind.HIDDEN_GROUP_MERGED,
    "{states} recur together as group {group}",
    "Nothing to do; states of different items of a list stay apart",
)
MIXING = warning(
    Kind.TRANSITION_NOT_POSITION_WISE,
    "the transition of group {group} ({states}) mixes positions at {at}: D is the true diagonal of "
    "its Jacobian, and credit between positions is left out",
    "Make a recurrent product an ETP operation, which leaves it out by choice, or keep the path "
    "from old to new values element-wise",
)
STRUCTURALLY_ZERO = warning(
    Kind.TRANSITION_STRUCTURALLY_ZERO,
    "D is structurally zero for group {group} ({states}): its old value reaches its new value only "
    "through ETP operations, so D-RTRL is truncated BPTT of one step there",
    "A leak or a gate on the state gives the trace something to carry, and "
    "recurrence_scope='coupled' keeps the diagonal of the ETP operations",
)
BOUNDED = info(
    Kind.TRANSITION_TAIL_BOUNDED,
    "the transition of group {group} ({states}) ends at {ends}: what its old value does to its new "
    "one through them is left out of D",
    "recurrence_scope='coupled' keeps its diagonal",
)
CROSSES = warning(
    Kind.CROSS_GROUP_DEPENDENCE,
    "group {to} ({reader}) reads group {from} ({read}) without an ETP operation between them; "
    "traces do not carry credit from one group to another over time",
    "Put an ETP operation between the layers, or keep states that belong together in one layer and "
    "of one shape",
)


def group_findings(found: Found) -> Iterator[CompilationRecord]:
    """What is peculiar about the groups that have traces."""
    crossed = _crossed_by_transitions(found)
    for group, cone in zip(found.hidden_groups, found.cones, strict=True):
        if cone.driving:
            yield from _transition(group, cone, crossed[group.index])
    yield from _readers(found)


def _transition(
    group: HiddenGroup, cone: Cone, cut: Sequence[JaxprEqn]
) -> Iterator[CompilationRecord]:
    """Findings about one group; ``cut`` are the ETP equations from its old to its new values."""

    def say(finding: Finding, eqn: JaxprEqn | None, **facts: Any) -> CompilationRecord:
        ends = ", ".join(map(described, cut))
        context = {"group": group.index, **facts}
        return finding(eqn, None, group.hidden_paths, context, ends=ends)

    info = group.module_info
    place = info.producer(group.hidden_outvars[0])
    for eqn in (info.eqns[i] for i in cone.eqns):
        if sum(versions.is_float(var.aval) for var in eqn.outvars) > 1:
            yield say(SEVERAL_RESULTS, eqn, results=len(eqn.outvars))
    if len(group.hidden_paths) > 1:
        yield say(MERGED, place)
    if cone.offence is not None:
        yield say(MIXING, cone.offence)
    if cut and cone.transition is None:
        yield say(STRUCTURALLY_ZERO, place)
    if cut and cone.transition is not None and cone.transition.program is None:
        yield say(BOUNDED, cut[0], operations=len(cut))


def _crossed_by_transitions(found: Found) -> Mapping[int, Sequence[JaxprEqn]]:
    """Per group, the ETP equations between its old and its new values."""
    groups, eqns = found.hidden_groups, found.module_info.eqns
    member = member_of(groups)
    barriers = {var: i for i, eqn in enumerate(eqns) if is_barrier(eqn) for var in eqn.outvars}

    def through(var: Var, marks: Marks) -> Marks:
        if var in member:
            marks = frozenset(mark for mark in marks if mark[0] == member[var])
        if var in barriers:
            marks |= {(g, barriers[var]) for g, _ in marks}
        return marks

    olds = {v: frozenset({(g.index, -1)}) for g in groups for v in g.hidden_invars}
    marks = depends(eqns, olds, through=through, along=Along.DERIVATIVES)
    reach = {g.index: {i for v in g.hidden_outvars for _, i in marks.get(v, ())} for g in groups}
    return {g: [eqns[i] for i in sorted(crossed - {-1})] for g, crossed in reach.items()}


def _readers(found: Found) -> Iterator[CompilationRecord]:
    """Where a group that has traces is read by another one without an ETP operation."""
    groups, info = found.hidden_groups, found.module_info
    driven = {cone.group for cone in found.cones if cone.driving}
    sources = {var: g for var, g in member_of(groups).items() if g in driven}
    marks = depends(
        info.eqns,
        {v: frozenset({g.index}) for g in groups if g.index in driven for v in g.hidden_invars},
        near_paths(info),
        emits=lambda i, eqn: frozenset(sources[v] for v in eqn.outvars if v in sources),
        along=Along.DERIVATIVES,
    )
    pairs = {(g, to) for var, to in member_of(groups).items() for g in marks.get(var, ())}
    for g, to in sorted(pairs):
        if g != to:
            group, reader = groups[g], groups[to]
            yield CROSSES(
                info.producer(reader.hidden_outvars[0]),
                None,
                (*reader.hidden_paths, *group.hidden_paths),
                {"from": g, "to": to},
                reader=show_path(reader.hidden_paths[0]),
                read=show_path(group.hidden_paths[0]),
            )
