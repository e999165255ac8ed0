# SPDX-License-Identifier: Apache-2.0
"""What the compiler reports of a model: one function per finding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import brainstate

from .. import _jax
from .._jax import Atom, JaxprEqn, Var
from .._jaxpr import Along, depends, slice_to
from .._primitive import is_etp_primitive
from ._cones import Cone
from ._control import Rewrite
from ._coverage import why_uncovered
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path, show_path
from ._groups import HiddenGroup, is_barrier, member_of, near_paths
from ._module_info import ModuleInfo, StateKind
from ._operations import HiddenParamOpRelation, TrainableOperand
from ._transitions import near_transition

Kind = DiagnosticKind
Records = list[CompilationRecord]


def _record(
    level: DiagnosticLevel, kind: Kind, message: str, eqn: JaxprEqn | None = None, **facts: Any
) -> CompilationRecord:
    """A record about an equation, whose primitive and place it takes unless told otherwise."""
    if eqn is not None:
        facts = {"primitive": eqn.primitive.name, "source": _jax.source_of(eqn)} | facts
    return CompilationRecord(kind, level, message, **facts)


_info = partial(_record, DiagnosticLevel.INFO)
_warning = partial(_record, DiagnosticLevel.WARNING)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(map(show_path, paths))


def described(offence: JaxprEqn) -> str:
    """The equation that mixes positions, with its place in the user's source."""
    return f"{offence.primitive.name!r} ({_jax.source_of(offence)})"


def _producer(minfo: ModuleInfo, atom: Atom) -> JaxprEqn | None:
    i = minfo.producers.get(atom) if _jax.is_var(atom) else None
    return None if i is None else minfo.eqns[i]


# --- operations ---------------------------------------------------------------------------------


def operand_records(eqn: JaxprEqn, operands: Sequence[TrainableOperand]) -> Records:
    """Trainable operands that are no parameters, or of which several leaves are behind one."""
    keyed = [operand for operand in operands if operand.key]
    return [_untraced(eqn, operand) for operand in keyed if not operand.leaves] + [
        _ambiguous(eqn, operand, path)
        for operand in keyed
        for path in dict.fromkeys(path for path, _ in operand.leaves)
        if sum(leaf[0] == path for leaf in operand.leaves) > 1
    ]


def _untraced(eqn: JaxprEqn, operand: TrainableOperand) -> CompilationRecord:
    held = operand.held[0][0] if operand.held else None
    return _info(
        Kind.TRAINABLE_INVAR_NOT_PARAMSTATE,
        f"the operand {operand.key!r} of {eqn.primitive.name!r} is not a parameter"
        if held is None
        else f"the operand {operand.key!r} of {eqn.primitive.name!r} has no derivative of "
        f"{show_path(held)}, which is held there (stop_gradient, integers)",
        eqn,
        weight_path=held,
        context={"key": operand.key},
        remedy="Keep its value in a brainstate.ParamState if it should be learned"
        if held is None
        else "Nothing to do if it is meant to be frozen",
    )


def _ambiguous(eqn: JaxprEqn, operand: TrainableOperand, path: Path) -> CompilationRecord:
    leaves = [k for owner, k in operand.leaves if owner == path]
    return _info(
        Kind.PYTREE_WEIGHT_LEAF_AMBIGUOUS,
        f"the operand {operand.key!r} of {eqn.primitive.name!r} is computed from the leaves "
        f"{leaves} of {show_path(path)}: the trace is that of the computed operand, and its "
        "gradient is pulled back to each of them, which is exact",
        eqn,
        weight_path=path,
        context={"key": operand.key, "leaves": leaves},
        remedy="Keep the leaves in parameters of their own to have a name for each",
    )


def included(relation: HiddenParamOpRelation, groups: tuple[HiddenGroup, ...]) -> CompilationRecord:
    indices = list(relation.group_alignments)
    return CompilationRecord(
        Kind.RELATION_INCLUDED,
        DiagnosticLevel.INFO,
        f"{relation.primitive.name}({relation.weight_path}) -> {indices}",
        relation.primitive.name,
        relation.weight_path,
        tuple(p for g in indices for p in groups[g].hidden_paths),
        {
            "hidden_group_indices": indices,
            "path_classification": dict(relation.path_classification),
        },
        relation.source,
    )


def partial_path(relation: HiddenParamOpRelation) -> CompilationRecord:
    paths = tuple(p for p, how in relation.path_classification.items() if how == "partial")
    return _info(
        Kind.RELATION_PARTIAL_PATH,
        f"{relation.primitive.name}({show_path(relation.weight_path)}) also reaches "
        f"{_names(paths)} through another ETP operation; that part of its gradient is that of the "
        "current step",
        primitive=relation.primitive.name,
        weight_path=relation.weight_path,
        hidden_paths=paths,
        source=relation.source,
        remedy="Let the other operation read the value of the step before if its credit matters",
    )


def tail_not_position_wise(
    relation: HiddenParamOpRelation, group: HiddenGroup, offence: JaxprEqn, factor: int
) -> CompilationRecord:
    """A tail that mixes positions: right, but with a larger trace."""
    return _warning(
        Kind.TAIL_NOT_POSITION_WISE,
        f"between {relation.primitive.name}({show_path(relation.weight_path)}) and "
        f"{show_path(group.hidden_paths[0])}, positions are mixed at {described(offence)}: the "
        f"gradient is right, but the trace is {factor} times as large",
        offence,
        weight_path=relation.weight_path,
        hidden_paths=group.hidden_paths,
        context={"group": group.index, "factor": factor},
        remedy="Put a normalisation, a pooling or a dense product in front of the operation",
    )


def excluded(
    eqn: JaxprEqn,
    operands: Sequence[TrainableOperand],
    near: frozenset[int],
    far: frozenset[int],
) -> CompilationRecord:
    """An ETP operation that is no relation."""
    path = next((leaf[0] for operand in operands for leaf in operand.leaves), None)
    held = next((leaf[0] for operand in operands for leaf in operand.held), None)
    reached = {"near_groups": sorted(near), "far_groups": sorted(far)}
    facts: dict[str, Any] = {"weight_path": held if path is None else path, "context": reached}
    name = eqn.primitive.name
    if path is None:
        cut = "; paths from hidden state to hidden state are cut at it all the same"
        return _info(
            Kind.RELATION_EXCLUDED_NO_PARAMSTATE,
            f"{name} has no trainable parameter"
            + ("" if held is None else f" ({show_path(held)} is held: stop_gradient, integers)")
            + ", so nothing is traced through it"
            + (cut if near and is_barrier(eqn) else ""),
            eqn,
            remedy="Use a plain JAX operation, or keep its weight in a brainstate.ParamState"
            if held is None
            else "Nothing to do if it is meant to be frozen",
            **facts,
        )
    if far:
        return _info(
            Kind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT,
            f"{name}({show_path(path)}) reaches a hidden state only through another ETP operation; "
            "its gradient is that of the current step",
            eqn,
            remedy="Let it drive a state of its own if its credit over time matters",
            **facts,
        )
    return _warning(
        Kind.RELATION_EXCLUDED_NON_TEMPORAL,
        f"{name}({show_path(path)}) reaches no hidden state; its gradient is that of the current "
        "step, which is exact",
        eqn,
        remedy="Nothing to do for a readout",
        **facts,
    )


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
    eqn = _producer(group.module_info, group.hidden_outvars[0])
    return {"eqn": eqn, "hidden_paths": group.hidden_paths} | facts


def _merged(group: HiddenGroup) -> CompilationRecord:
    return _info(
        Kind.HIDDEN_GROUP_MERGED,
        f"{_names(group.hidden_paths)} recur together as group {group.index}",
        **_about(group, context={"group": group.index}),
        remedy="Nothing to do; states of different items of a list stay apart",
    )


def _structurally_zero(group: HiddenGroup) -> CompilationRecord:
    return _warning(
        Kind.TRANSITION_STRUCTURALLY_ZERO,
        f"D is structurally zero for group {group.index} ({_names(group.hidden_paths)}): its old "
        "value reaches its new value only through ETP operations, so D-RTRL is truncated BPTT of "
        "one step there",
        **_about(group, context={"group": group.index}),
        remedy="A leak or a gate on the state gives the trace something to carry, and "
        "recurrence_scope='coupled' keeps the diagonal of the ETP operations",
    )


def transition_not_position_wise(group: HiddenGroup, offence: JaxprEqn) -> CompilationRecord:
    """A transition that mixes positions: its off-diagonal part is dropped."""
    return _warning(
        Kind.TRANSITION_NOT_POSITION_WISE,
        f"the transition of group {group.index} ({_names(group.hidden_paths)}) mixes positions at "
        f"{described(offence)}: D is the true diagonal of its Jacobian, and credit between "
        "positions is left out",
        **_about(group, eqn=offence, context={"group": group.index}),
        remedy="Make a recurrent product an ETP operation, which leaves it out by choice, or keep "
        "the path from old to new values element-wise",
    )


def _with_several_results(group: HiddenGroup, cone: Cone) -> list[JaxprEqn]:
    eqns = [group.module_info.eqns[i] for i in cone.eqns]
    return [eqn for eqn in eqns if sum(_jax.is_float(var.aval) for var in eqn.outvars) > 1]


def _several_results(group: HiddenGroup, eqn: JaxprEqn) -> CompilationRecord:
    return _info(
        Kind.MULTI_OUTPUT_PRIMITIVE_DETECTED,
        f"{eqn.primitive.name!r} on the way to group {group.index} ({_names(group.hidden_paths)}) "
        f"has {len(eqn.outvars)} results, and each is followed by itself",
        **_about(group, eqn=eqn, context={"group": group.index, "results": len(eqn.outvars)}),
        remedy="Nothing to do, unless positions are reported as mixed there",
    )


def _bounded(group: HiddenGroup, eqns: Sequence[JaxprEqn]) -> CompilationRecord:
    at = ", ".join(map(described, eqns))
    return _info(
        Kind.TRANSITION_TAIL_BOUNDED,
        f"the transition of group {group.index} ({_names(group.hidden_paths)}) ends at {at}: what "
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
        arriving = (behind.get(a, ()) for a in eqn.invars if _jax.is_var(a))
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
    return _warning(
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


# --- the model as a whole -----------------------------------------------------------------------


def model_records(
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    relations: Sequence[HiddenParamOpRelation],
    coverage: Mapping[Path, str],
) -> Records:
    """Findings about parameters, states and control flow rather than about operations."""
    return [
        *rewrite_records(minfo, relations),
        *plain_parameter_records(minfo, groups),
        *carrier_records(minfo, groups),
        *(unused(minfo, path) for path, how in coverage.items() if how == "none"),
        *mismatch_records(minfo),
    ]


def plain_parameter_records(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> Records:
    """Parameters that reach a hidden state other than as a trainable operand."""

    def passes(i: int, eqn: JaxprEqn, operand: int) -> bool:
        etp = is_etp_primitive(eqn.primitive)
        return not etp or operand == eqn.primitive.spec.x_invar_index

    seeds = {v: frozenset({p}) for p, vs in minfo.weight_path_to_invars.items() for v in vs}
    marks = depends(minfo.eqns, seeds, passes, along=Along.DERIVATIVES)
    news = [v for g in groups for v in g.hidden_outvars]
    reaching = {p for v in news for p in marks.get(v, frozenset())}
    if not reaching:
        return []
    readers = [minfo.eqns[i] for i in slice_to(minfo.eqns, news, passes, Along.DERIVATIVES)]
    return [
        _plain(path, next((eqn for eqn in readers if {*leaves} & {*_variables(eqn)}), None))
        for path, leaves in minfo.weight_path_to_invars.items()
        if path in reaching
    ]


def _variables(eqn: JaxprEqn) -> list[Var]:
    return [atom for atom in eqn.invars if _jax.is_var(atom)]


def _plain(path: Path, eqn: JaxprEqn | None) -> CompilationRecord:
    return _warning(
        Kind.PARAMETER_OUTSIDE_OPERATION,
        f"the parameter {show_path(path)} reaches a hidden state other than as the weight of an "
        "ETP operation: that part of its gradient covers the current step only",
        eqn,
        weight_path=path,
        remedy="Use braintrace.matmul for a product (its bias included) and "
        "braintrace.element_wise for a factor or an offset",
    )


def carrier_records(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> Records:
    """Other states that take up hidden values and are read again by a later step."""
    others = [s for s in minfo.slots_of(StateKind.OTHER) if s.leaves]
    seeds = {v: frozenset({s.path}) for s in others for v in minfo.invars_of(s)}
    seeds |= {v: frozenset({"hidden"}) for g in groups for v in g.hidden_invars}
    members = {v for g in groups for v in g.hidden_outvars}
    marks = depends(
        minfo.eqns,
        seeds,
        emits=lambda i, eqn: frozenset({"hidden"} if members & set(eqn.outvars) else ()),
        along=Along.DERIVATIVES,
    )

    def behind(atom: Any) -> frozenset[Any]:
        return marks.get(atom, frozenset()) if _jax.is_var(atom) else frozenset()

    used = [*members, *minfo.jaxpr.outvars[: minfo.num_out]]
    read = {mark for atom in used for mark in behind(atom)}
    found = [(s, a) for s in others if s.path in read for a in minfo.outvars_of(s)]
    carried = {s.path: _producer(minfo, a) for s, a in found[::-1] if "hidden" in behind(a)}
    return [_carrier(s.path, carried[s.path]) for s in others if s.path in carried]


def _carrier(path: Path, eqn: JaxprEqn | None) -> CompilationRecord:
    return _warning(
        Kind.CREDIT_THROUGH_OTHER_STATE,
        f"the state {show_path(path)} takes up hidden values and is read by the next step, but it "
        "is not a brainstate.HiddenState: no credit passes through it",
        eqn,
        hidden_paths=(path,),
        remedy="Make it a HiddenState if it should",
    )


def unused(minfo: ModuleInfo, path: Path) -> CompilationRecord:
    """A frozen parameter without a gradient."""
    return _info(
        Kind.PARAMETER_UNUSED,
        f"the frozen parameter {show_path(path)} has no gradient: {why_uncovered(minfo, path)}",
        weight_path=path,
        remedy="Nothing to do; take it out of frozen to make that an error",
    )


def mismatch_records(minfo: ModuleInfo) -> Records:
    """States of the model that its step leaves alone, and states of the step that it lacks."""
    used = {slot.path for slot in minfo.slots}
    idle = [
        path
        for path, state in minfo.retrieved_model_states.items()
        if path not in used and isinstance(state, brainstate.HiddenState)
    ]
    strange = [
        slot
        for slot in minfo.slots
        if slot.path not in minfo.retrieved_model_states
        and not isinstance(slot.state, brainstate.random.RandomState)
    ]
    return [_idle(path) for path in idle] + [_strange(slot.path, slot.state) for slot in strange]


def _idle(path: Path) -> CompilationRecord:
    return _warning(
        Kind.STATE_MISMATCH,
        f"the step neither reads nor writes the hidden state {show_path(path)} of the model",
        hidden_paths=(path,),
        context={"direction": "retrieved_not_in_compiled"},
        remedy="Call the layer it belongs to, or take that layer out of the model",
    )


def _strange(path: Path, state: brainstate.State[Any]) -> CompilationRecord:
    return _warning(
        Kind.STATE_MISMATCH,
        f"the step uses a {type(state).__name__} ({state.name or 'no name'}) that is not reachable "
        "from the model; it is carried along, but resetting the model leaves it as it is",
        hidden_paths=(path,),
        context={"direction": "compiled_not_in_retrieved"},
        remedy="Make the module that owns it an attribute of the model",
    )


# --- calls and control flow -----------------------------------------------------------------------

_REWRITES = {
    Kind.PRIMITIVE_INSIDE_NESTED_JIT: "Nothing to do",
    Kind.PRIMITIVE_INSIDE_CONTROL_FLOW: "Call the operation outside of the branch or loop to have "
    "it run, and traced, once",
    Kind.CONTROL_FLOW_REWRITTEN: "ControlFlowPolicy says what is rewritten, and up to which length",
    Kind.WEIGHT_IN_CONTROL_FLOW: "Use the parameter through an ETP operation to have it traced",
}


def rewrite_records(minfo: ModuleInfo, relations: Sequence[HiddenParamOpRelation]) -> Records:
    """What was found in calls, branches and loops, and done to them."""
    return [_rewritten(found, relations) for found in dict.fromkeys(minfo.rewrites)]


def _rewritten(found: Rewrite, relations: Sequence[HiddenParamOpRelation]) -> CompilationRecord:
    kind, place = Kind(found.kind), (found.primitive, found.source)
    here = [r for r in relations if (r.primitive.name, r.source) == place]
    path = here[0].weight_path if here else found.weight_path
    states = dict.fromkeys(path for r in here for path in r.connected_hidden_paths)
    return _info(
        kind,
        found.description,
        primitive=found.primitive,
        weight_path=path,
        hidden_paths=tuple(states),
        source=found.source,
        remedy=_REWRITES[kind],
    )
