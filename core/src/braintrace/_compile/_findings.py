# SPDX-License-Identifier: Apache-2.0
"""What the compiler reports of a model: one function per finding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _jax
from .._jax import JaxprEqn
from .._jaxpr import depends, differentiable
from .._primitive import is_etp_primitive
from ._cones import Cone
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path, show_path
from ._groups import HiddenGroup, is_barrier, member_of, near_paths
from ._module_info import ModuleInfo, StateKind
from ._operations import HiddenParamOpRelation, TrainableOperand


def untraced_operands(
    eqn: JaxprEqn, operands: Sequence[TrainableOperand]
) -> list[CompilationRecord]:
    return [
        CompilationRecord(
            DiagnosticKind.TRAINABLE_INVAR_NOT_PARAMSTATE,
            DiagnosticLevel.INFO,
            f"the operand {operand.key!r} of {eqn.primitive.name!r} is not a parameter",
            primitive=eqn.primitive.name,
            source=_jax.source_of(eqn),
            context={"key": operand.key},
        )
        for operand in operands
        if operand.key and not operand.leaves
    ]


def transition_records(group: HiddenGroup, cone: Cone) -> list[CompilationRecord]:
    records = []
    names = ", ".join(show_path(path) for path in group.hidden_paths)
    if len(group.hidden_paths) > 1:
        records.append(
            CompilationRecord(
                DiagnosticKind.HIDDEN_GROUP_MERGED,
                DiagnosticLevel.INFO,
                f"{names} recur together as group {group.index}",
                hidden_paths=group.hidden_paths,
                context={"group": group.index},
            )
        )
    if not cone.old_reaches:
        records.append(
            CompilationRecord(
                DiagnosticKind.TRANSITION_STRUCTURALLY_ZERO,
                DiagnosticLevel.WARNING,
                f"D is structurally zero for group {group.index} ({names}): its old value reaches "
                "its new value only through ETP operations, so D-RTRL is truncated BPTT of one "
                "step there. A leak or a gate on the state gives the trace something to carry",
                hidden_paths=group.hidden_paths,
                context={"group": group.index},
            )
        )
    return records


def cross_group_records(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...], driven: Sequence[set[int]]
) -> list[CompilationRecord]:
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
    )
    found = {
        (g, group.index)
        for group in groups
        for var in group.hidden_outvars
        for g in marks.get(var, frozenset())
        if g != group.index
    }
    return [
        CompilationRecord(
            DiagnosticKind.CROSS_GROUP_DEPENDENCE,
            DiagnosticLevel.WARNING,
            f"group {to} ({show_path(groups[to].hidden_paths[0])}) reads group {g} "
            f"({show_path(groups[g].hidden_paths[0])}) without an ETP operation between them; "
            "traces do not carry credit from one group to another over time",
            hidden_paths=(*groups[to].hidden_paths, *groups[g].hidden_paths),
            context={"from": g, "to": to},
        )
        for g, to in sorted(found)
    ]


def partial_path(relation: HiddenParamOpRelation) -> CompilationRecord:
    paths = tuple(p for p, how in relation.path_classification.items() if how == "partial")
    return CompilationRecord(
        DiagnosticKind.RELATION_PARTIAL_PATH,
        DiagnosticLevel.INFO,
        f"{relation.primitive.name}({show_path(relation.weight_path)}) also reaches "
        f"{', '.join(map(show_path, paths))} through another ETP operation; that part of its "
        "gradient is that of the current step",
        primitive=relation.primitive.name,
        weight_path=relation.weight_path,
        hidden_paths=paths,
        source=relation.source,
    )


def included(relation: HiddenParamOpRelation, groups: tuple[HiddenGroup, ...]) -> CompilationRecord:
    indices = list(relation.group_alignments)
    return CompilationRecord(
        DiagnosticKind.RELATION_INCLUDED,
        DiagnosticLevel.INFO,
        f"{relation.primitive.name}({relation.weight_path}) -> {indices}",
        primitive=relation.primitive.name,
        weight_path=relation.weight_path,
        hidden_paths=tuple(p for g in indices for p in groups[g].hidden_paths),
        source=relation.source,
        context={
            "hidden_group_indices": indices,
            "path_classification": dict(relation.path_classification),
        },
    )


def excluded(
    eqn: JaxprEqn,
    operands: Sequence[TrainableOperand],
    near: frozenset[int],
    far: frozenset[int],
) -> CompilationRecord:
    leaves = [leaf for operand in operands for leaf in operand.leaves]
    path = leaves[0][0] if leaves else None
    name = eqn.primitive.name
    shown = "no parameter" if path is None else show_path(path)
    kind, level = DiagnosticKind.RELATION_EXCLUDED_NO_PARAMSTATE, DiagnosticLevel.INFO
    text = f"{name} has no trainable parameter, so nothing is traced through it"
    if near and is_barrier(eqn):
        text += "; paths from hidden state to hidden state are cut at it all the same"
    if leaves and far:
        kind = DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT
        text = (
            f"{name}({shown}) reaches a hidden state only through another ETP operation; its "
            "gradient is that of the current step"
        )
    elif leaves:
        kind, level = DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL, DiagnosticLevel.WARNING
        text = (
            f"{name}({shown}) reaches no hidden state; its gradient is that of the current step, "
            "which is exact"
        )
    return CompilationRecord(
        kind,
        level,
        text,
        primitive=name,
        weight_path=path,
        source=_jax.source_of(eqn),
        context={"near_groups": sorted(near), "far_groups": sorted(far)},
    )


def plain_parameter_records(
    minfo: ModuleInfo, groups: Sequence[HiddenGroup]
) -> list[CompilationRecord]:
    """Parameters that reach a hidden state other than as a trainable operand."""

    def passes(i: int, eqn: Any, operand: int) -> bool:
        if not is_etp_primitive(eqn.primitive):
            return differentiable(eqn)
        return operand == eqn.primitive.spec.x_invar_index

    seeds = {v: frozenset({p}) for p, vs in minfo.weight_path_to_invars.items() for v in vs}
    marks = depends(minfo.eqns, seeds, passes)
    reaching = {p for g in groups for v in g.hidden_outvars for p in marks.get(v, frozenset())}
    return [_plain(path) for path in minfo.weight_path_to_invars if path in reaching]


def carrier_records(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> list[CompilationRecord]:
    """Other states that take up hidden values and are read again by a later step."""
    others = [s for s in minfo.slots_of(StateKind.OTHER) if s.leaves]
    seeds = {v: frozenset({s.path}) for s in others for v in minfo.invars_of(s)}
    seeds |= {v: frozenset({"hidden"}) for g in groups for v in g.hidden_invars}
    members = {v for g in groups for v in g.hidden_outvars}
    marks = depends(
        minfo.eqns,
        seeds,
        lambda i, eqn, operand: differentiable(eqn),
        emits=lambda i, eqn: frozenset({"hidden"} if members & set(eqn.outvars) else ()),
    )

    def behind(atom: Any) -> frozenset[Any]:
        return marks.get(atom, frozenset()) if _jax.is_var(atom) else frozenset()

    used = [*members, *minfo.jaxpr.outvars[: minfo.num_out]]
    read = {mark for atom in used for mark in behind(atom)}
    return [
        _carrier(s.path)
        for s in others
        if s.path in read and any("hidden" in behind(a) for a in minfo.outvars_of(s))
    ]


def _carrier(path: Path) -> CompilationRecord:
    return CompilationRecord(
        DiagnosticKind.CREDIT_THROUGH_OTHER_STATE,
        DiagnosticLevel.WARNING,
        f"the state {show_path(path)} takes up hidden values and is read by the next step, but it "
        "is not a brainstate.HiddenState: no credit passes through it. Make it a HiddenState if "
        "it should",
        hidden_paths=(path,),
    )


def _plain(path: Path) -> CompilationRecord:
    return CompilationRecord(
        DiagnosticKind.PARAMETER_OUTSIDE_OPERATION,
        DiagnosticLevel.WARNING,
        f"the parameter {show_path(path)} reaches a hidden state other than as the weight of an "
        "ETP operation: "
        "that part of its gradient covers the current step only. Use braintrace.matmul for a "
        "product (its bias included) and braintrace.element_wise for a factor or an offset",
        weight_path=path,
    )


def unused(path: Path) -> CompilationRecord:
    return CompilationRecord(
        DiagnosticKind.PARAMETER_UNUSED,
        DiagnosticLevel.WARNING,
        f"no differentiable path leads from the parameter {show_path(path)} to the result or to a "
        "hidden state: its gradient is zero",
        weight_path=path,
    )
