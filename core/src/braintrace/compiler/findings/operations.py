# SPDX-License-Identifier: Apache-2.0
"""Findings about ETP operations, their operands and their relations."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...base.diagnostics import CompilationRecord
from ...base.types import show_path
from ..graph import ETraceGraph
from ..module_info import is_barrier
from ..reach import Reach
from .record import Kind, info, warning

FROZEN = "Nothing to do if it is meant to be frozen"

NO_PARAMETER = info(
    Kind.RELATION_EXCLUDED_NO_PARAMSTATE,
    "{primitive} has no trainable parameter, so nothing is traced through it{cut}",
    "Use a plain JAX operation, or keep its weight in a brainstate.ParamState",
)
HELD_PARAMETER = info(
    Kind.RELATION_EXCLUDED_NO_PARAMSTATE,
    "{primitive} has no trainable parameter ({parameter} is held: stop_gradient, integers), so "
    "nothing is traced through it{cut}",
    FROZEN,
)
WEIGHT_TO_WEIGHT = info(
    Kind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT,
    "{primitive}({parameter}) reaches a hidden state only through another ETP operation; its "
    "gradient is that of the current step",
    "Let it drive a state of its own if its credit over time matters",
)
NON_TEMPORAL = warning(
    Kind.RELATION_EXCLUDED_NON_TEMPORAL,
    "{primitive}({parameter}) reaches no hidden state; its gradient is that of the current step, "
    "which is exact",
    "Nothing to do for a readout",
)
OPERAND_IS_NO_PARAMETER = info(
    Kind.TRAINABLE_INVAR_NOT_PARAMSTATE,
    "the operand {key!r} of {primitive!r} is not a parameter",
    "Keep its value in a brainstate.ParamState if it should be learned",
)
OPERAND_IS_HELD = info(
    Kind.TRAINABLE_INVAR_NOT_PARAMSTATE,
    "the operand {key!r} of {primitive!r} has no derivative of {parameter}, which is held there "
    "(stop_gradient, integers)",
    FROZEN,
)
SEVERAL_LEAVES = info(
    Kind.PYTREE_WEIGHT_LEAF_AMBIGUOUS,
    "the operand {key!r} of {primitive!r} is computed from the leaves {leaves} of {parameter}: the "
    "trace is that of the computed operand, and its gradient is pulled back to each of them, which "
    "is exact",
    "Keep the leaves in parameters of their own to have a name for each",
)
INCLUDED = info(Kind.RELATION_INCLUDED, "{primitive}({parameter}) -> {hidden_group_indices}", "")
PARTIAL_PATH = info(
    Kind.RELATION_PARTIAL_PATH,
    "{primitive}({parameter}) also reaches {states} through another ETP operation; that part of "
    "its gradient is that of the current step",
    "Let the other operation read the value of the step before if its credit matters",
)
MIXING_TAIL = warning(
    Kind.TAIL_NOT_POSITION_WISE,
    "between {operation}({parameter}) and {state}, positions are mixed at {at}: the gradient is "
    "right, but the trace is {factor} times as large",
    "Put a normalisation, a pooling or a dense product in front of the operation",
)


def operation_findings(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """Operations that are no relations, and operands that are no parameters."""
    for reach in found.reach:
        yield from _operands(reach) if reach.traced else [_excluded(reach)]


def _excluded(reach: Reach) -> CompilationRecord:
    leaves = [leaf for operand in reach.operands for leaf in operand.leaves]
    held = [leaf for operand in reach.operands for leaf in operand.held]
    if leaves:
        finding = WEIGHT_TO_WEIGHT if reach.far else NON_TEMPORAL
    else:
        finding = HELD_PARAMETER if held else NO_PARAMETER
    cut = "; paths from hidden state to hidden state are cut at it all the same"
    cut = cut if reach.near and is_barrier(reach.eqn) else ""
    about = {"near_groups": sorted(reach.near), "far_groups": sorted(reach.far)}
    path = next((path for path, _ in leaves or held), None)
    return finding(reach.eqn, path, (), about, cut=cut)


def _operands(reach: Reach) -> Iterator[CompilationRecord]:
    """Trainable operands that are no parameters, or of which several leaves are behind one."""
    for operand in (operand for operand in reach.operands if operand.key):
        about = {"key": operand.key}
        if not operand.leaves:
            finding = OPERAND_IS_HELD if operand.held else OPERAND_IS_NO_PARAMETER
            yield finding(reach.eqn, next((path for path, _ in operand.held), None), (), about)
        for path in dict.fromkeys(path for path, _ in operand.leaves):
            leaves = [k for owner, k in operand.leaves if owner == path]
            if len(leaves) > 1:
                yield SEVERAL_LEAVES(reach.eqn, path, (), {**about, "leaves": leaves})


def relation_findings(found: ETraceGraph) -> Iterator[CompilationRecord]:
    """All relations, and what is peculiar about some."""
    relations, eqns = found.hidden_param_op_relations, found.module_info.eqns
    for r in relations:
        indices, classes = [*r.group_alignments], dict(r.path_classification)
        facts = {"hidden_group_indices": indices, "path_classification": classes}
        yield INCLUDED(eqns[r.eqn_index], r.weight_path, r.connected_hidden_paths, facts)
    for r in relations:
        if partial := tuple(p for p, how in r.path_classification.items() if how == "partial"):
            yield PARTIAL_PATH(eqns[r.eqn_index], r.weight_path, partial)
    for r in relations:
        for group, lies in zip(r.hidden_groups, r.group_alignments.values(), strict=True):
            if lies.mixed and lies.extra and lies.offence is not None:
                factor = math.prod(lies.result[k] for k in lies.extra)
                about = {"group": group.index, "factor": factor}
                told = {"operation": r.primitive.name, "state": show_path(group.hidden_paths[0])}
                yield MIXING_TAIL(lies.offence, r.weight_path, group.hidden_paths, about, **told)
