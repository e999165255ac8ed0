# SPDX-License-Identifier: Apache-2.0
"""What the compiler reports of a model: one function per finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import brainstate

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import Path, show_path
from ...base.versions import JaxprEqn, Var
from ...jaxprs.depends import Along, depends, slice_to
from ...ops.primitive import is_etp_primitive
from ..coverage import why_uncovered
from ..groups import HiddenGroup
from ..module_info import ModuleInfo
from ..program import StateKind
from ..relation import HiddenParamOpRelation
from .record import Kind, Records, info, warning

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
    return [atom for atom in eqn.invars if versions.is_var(atom)]


def _plain(path: Path, eqn: JaxprEqn | None) -> CompilationRecord:
    return warning(
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
        return marks.get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    used = [*members, *minfo.jaxpr.outvars[: minfo.num_out]]
    read = {mark for atom in used for mark in behind(atom)}
    found = [(s, a) for s in others if s.path in read for a in minfo.outvars_of(s)]
    carried = {s.path: minfo.producer(a) for s, a in found[::-1] if "hidden" in behind(a)}
    return [_carrier(s.path, carried[s.path]) for s in others if s.path in carried]


def _carrier(path: Path, eqn: JaxprEqn | None) -> CompilationRecord:
    return warning(
        Kind.CREDIT_THROUGH_OTHER_STATE,
        f"the state {show_path(path)} takes up hidden values and is read by the next step, but it "
        "is not a brainstate.HiddenState: no credit passes through it",
        eqn,
        hidden_paths=(path,),
        remedy="Make it a HiddenState if it should",
    )


def unused(minfo: ModuleInfo, path: Path) -> CompilationRecord:
    """A frozen parameter without a gradient."""
    return info(
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
    return warning(
        Kind.STATE_MISMATCH,
        f"the step neither reads nor writes the hidden state {show_path(path)} of the model",
        hidden_paths=(path,),
        context={"direction": "retrieved_not_in_compiled"},
        remedy="Call the layer it belongs to, or take that layer out of the model",
    )


def _strange(path: Path, state: brainstate.State[Any]) -> CompilationRecord:
    return warning(
        Kind.STATE_MISMATCH,
        f"the step uses a {type(state).__name__} ({state.name or 'no name'}) that is not reachable "
        "from the model; it is carried along, but resetting the model leaves it as it is",
        hidden_paths=(path,),
        context={"direction": "compiled_not_in_retrieved"},
        remedy="Make the module that owns it an attribute of the model",
    )


def rewrite_records(minfo: ModuleInfo, relations: Sequence[HiddenParamOpRelation]) -> Records:
    """What was found in calls, branches and loops, and done to them."""
    return [_rewritten(found, relations) for found in dict.fromkeys(minfo.rewrites)]


def _rewritten(
    found: CompilationRecord, relations: Sequence[HiddenParamOpRelation]
) -> CompilationRecord:
    """The record with the relations of the operation that it is about."""
    place = (found.primitive, found.source)
    here = [r for r in relations if (r.primitive.name, r.source) == place]
    path = here[0].weight_path if here else found.weight_path
    states = dict.fromkeys(path for r in here for path in r.connected_hidden_paths)
    return replace(found, weight_path=path, hidden_paths=tuple(states))
