# SPDX-License-Identifier: Apache-2.0
"""Findings about hidden groups, parameters and states rather than about operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import brainstate

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import show_path
from ...base.versions import JaxprEqn, Var
from ...jaxprs.depends import Along, marks_of, slice_to
from ...jaxprs.run import first_nested_operation
from ...ops.primitive import is_etp_primitive
from ..coverage import behind_states, why_uncovered
from ..graph import ETraceGraph
from ..groups import groups_of_new, member_of
from ..module_info import Marks, StateKind, is_barrier
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
OUTSIDE = warning(
    Kind.PARAMETER_OUTSIDE_OPERATION,
    "the parameter {parameter} reaches a hidden state other than as the weight of an ETP "
    "operation: that part of its gradient covers the current step only",
    "Use braintrace.matmul for a product (its bias included) and braintrace.element_wise for a "
    "factor or an offset",
)
CARRIER = warning(
    Kind.CREDIT_THROUGH_OTHER_STATE,
    "the state {states} takes up {what} and is read by the next step, but it is not a "
    "brainstate.HiddenState: no credit passes through it{lost}",
    "Make it a HiddenState if it should, of the shape of the states that write to it; a buffer "
    "needs one more axis, that of its steps, all positions (read a part of them from it, rather "
    "than write one), and no product of its own between positions; with delay_lines=False none is "
    "followed",
)
UNUSED = info(
    Kind.PARAMETER_UNUSED,
    "the frozen parameter {parameter} has no gradient: {why}",
    "Nothing to do; take it out of frozen to make that an error",
)
IDLE = warning(
    Kind.STATE_MISMATCH,
    "the step neither reads nor writes the hidden state {states} of the model",
    "Call the layer it belongs to, or take that layer out of the model",
)
STRANGE = warning(
    Kind.STATE_MISMATCH,
    "the step uses a {type} ({name}) that is not reachable from the model; it is carried along, "
    "but resetting the model leaves it as it is",
    "Make the module that owns it an attribute of the model",
)


def group_findings(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """What is peculiar about the groups that have traces."""
    info = found.module_info
    crossed = zip(found.hidden_groups, found.cones, _crossed_by_transitions(found), strict=True)
    for group, cone, cut in crossed:
        transition, place = cone.transition, info.producer(group.hidden_outvars[0])
        told: list[tuple[Finding, JaxprEqn | None, dict[str, Any]]] = []
        for eqn in (info.eqns[i] for i in cone.eqns):
            if sum(versions.is_float(var.aval) for var in eqn.outvars) > 1:
                told.append((SEVERAL_RESULTS, eqn, {"results": len(eqn.outvars)}))
        if len(group.hidden_paths) > 1:
            told.append((MERGED, place, {}))
        if cone.offence is not None:
            told.append((MIXING, cone.offence, {}))
        if cut and transition is None:
            told.append((STRUCTURALLY_ZERO, place, {}))
        if cut and transition is not None and transition.program is None:
            told.append((BOUNDED, cut[0], {"operations": len(cut)}))
        for finding, at, facts in told if cone.driving else ():
            about, ends = {"group": group.index, **facts}, ", ".join(map(described, cut))
            yield finding(at, None, group.hidden_paths, about, ends=ends)
    yield from _readers(found)


def _crossed_by_transitions(found: ETraceGraph) -> Iterator[Sequence[JaxprEqn]]:
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
    marks = found.module_info.credit(olds, through=through)
    for group in groups:
        crossed = {i for _, i in marks_of(marks, group.hidden_outvars)}
        yield [eqns[i] for i in sorted(crossed - {-1})]


def _readers(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """Where a group that has traces is read by another one without an ETP operation."""
    groups, info = found.hidden_groups, found.module_info
    driven, member = {c.group for c in found.cones if c.driving}, member_of(groups)
    olds = {v: frozenset({g.index}) for g in groups for v in g.hidden_invars}
    marks = info.credit(olds, info.near, groups_of_new(groups))
    pairs = {(g, to) for var, to in member.items() for g in marks.get(var, ()) if g in driven}
    run = found.executed.hid_path_to_group
    for g, to in sorted(pair for pair in pairs if pair[0] != pair[1]):
        read, reader = groups[g].hidden_paths, groups[to].hidden_paths
        if all(path in found.uniform or run[path] is run.get(read[0]) for path in reader):
            continue  # credit passes
        place = info.producer(groups[to].hidden_outvars[0])
        told = {"reader": show_path(reader[0]), "read": show_path(read[0])}
        yield CROSSES(place, None, (*reader, *read), {"from": g, "to": to}, **told)


def model_findings(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """Findings about the model as a whole."""
    yield from _rewritten(found)
    yield from _outside(found)
    yield from _carriers(found)
    for path, how in found.coverage().items():
        if how == "none":
            yield UNUSED(weight_path=path, why=why_uncovered(found.module_info, path))
    yield from _mismatches(found)


def _rewritten(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """What was found in calls, branches and loops, with the relations of the operations there."""
    relations = found.hidden_param_op_relations
    for record in dict.fromkeys(found.module_info.rewrites):
        place = (record.primitive, record.source)
        here = [r for r in relations if (r.primitive.name, r.source) == place]
        path = here[0].weight_path if here else record.weight_path
        states = dict.fromkeys(path for r in here for path in r.connected_hidden_paths)
        yield replace(record, weight_path=path, hidden_paths=tuple(states))


def _outside(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """Parameters that reach a hidden state other than as a trainable operand."""
    info = found.module_info
    looped = {i for i, eqn in enumerate(info.eqns) if first_nested_operation(eqn) is not None}

    def passes(i: int, eqn: JaxprEqn, operand: int) -> bool:
        if is_etp_primitive(eqn.primitive):
            return bool(operand == eqn.primitive.spec.x_invar_index)
        return i not in looped  # where an operation of a loop has its first values

    seeds = {var: frozenset({path}) for (path, _), var in info.parameter_leaves.items()}
    marks = info.credit(seeds, passes)
    news = [var for group in found.hidden_groups for var in group.hidden_outvars]
    if not (reaching := marks_of(marks, news)):
        return
    readers = [info.eqns[i] for i in slice_to(info.eqns, news, passes, Along.DERIVATIVES)]
    for path, leaves in info.weight_path_to_invars.items():
        if path in reaching:
            reads = (eqn for eqn in readers if any(atom in leaves for atom in eqn.invars))
            yield OUTSIDE(next(reads, None), path)


def _carriers(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """Other states that take up hidden values and are read again by a later step."""
    info, groups = found.module_info, found.hidden_groups
    others, taken = info.slots_of(StateKind.OTHER), frozenset({"hidden"})
    seeds = {v: frozenset({s.path}) for s in others for v in info.invars_of(s)}
    seeds |= {v: frozenset({"parameters"}) for v in info.parameter_leaves.values()}
    seeds |= {v: taken for g in groups for v in g.hidden_invars}
    members = {v for g in groups for v in g.hidden_outvars}
    marks = info.credit(seeds, emits=dict.fromkeys(members, taken))
    lost = ", ".join(show_path(path) for path, how in found.coverage().items() if how == "lost")
    zero = f", so that the gradient of {lost} is zero" if lost else ""
    read = marks_of(marks, (*members, *info.jaxpr.outvars[: info.num_out]))
    kinds_of = {
        slot: [(v, marks.get(v, frozenset())) for v in info.outvars_of(slot) if versions.is_var(v)]
        for slot in others
    }
    read |= behind_states(read, {s.path: marks_of(marks, info.outvars_of(s)) for s in others})
    for slot, kinds in kinds_of.items():
        taking = [(var, what) for var, what in kinds if {"hidden", "parameters"} & what]
        if taking and slot.path in read:
            what = "hidden values" if "hidden" in taking[0][1] else "what parameters make"
            place = info.producer(taking[0][0])
            yield CARRIER(place, hidden_paths=(slot.path,), what=what, lost=zero)


def _mismatches(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """States of the model that its step leaves alone, and states of the step that it lacks."""
    info = found.module_info
    used = {slot.path for slot in info.slots}
    for path, state in info.retrieved_model_states.items():
        if path not in used and isinstance(state, brainstate.HiddenState):
            yield IDLE(None, None, (path,), {"direction": "retrieved_not_in_compiled"})
    for slot in info.slots:
        strange = slot.path not in info.retrieved_model_states
        if strange and not isinstance(slot.state, brainstate.random.RandomState):
            told = {"type": type(slot.state).__name__, "name": slot.state.name or "no name"}
            about = {"direction": "compiled_not_in_retrieved"}
            yield STRANGE(None, None, (slot.path,), about, **told)
