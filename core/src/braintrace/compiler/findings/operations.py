# SPDX-License-Identifier: Apache-2.0
"""Findings about ETP operations and their operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.diagnostics import CompilationRecord, DiagnosticLevel
from ...base.types import Path, show_path
from ...base.versions import JaxprEqn
from ..groups import HiddenGroup
from ..near import is_barrier
from ..operands import TrainableOperand
from ..relation import HiddenParamOpRelation
from .record import Kind, Records, described, info, listed, warning

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
    return info(
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
    return info(
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
        f"{relation.primitive.name}({show_path(relation.weight_path)}) -> {indices}",
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
    return info(
        Kind.RELATION_PARTIAL_PATH,
        f"{relation.primitive.name}({show_path(relation.weight_path)}) also reaches "
        f"{listed(paths)} through another ETP operation; that part of its gradient is that of the "
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
    return warning(
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
        return info(
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
        return info(
            Kind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT,
            f"{name}({show_path(path)}) reaches a hidden state only through another ETP operation; "
            "its gradient is that of the current step",
            eqn,
            remedy="Let it drive a state of its own if its credit over time matters",
            **facts,
        )
    return warning(
        Kind.RELATION_EXCLUDED_NON_TEMPORAL,
        f"{name}({show_path(path)}) reaches no hidden state; its gradient is that of the current "
        "step, which is exact",
        eqn,
        remedy="Nothing to do for a readout",
        **facts,
    )
