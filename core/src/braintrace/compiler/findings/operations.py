# SPDX-License-Identifier: Apache-2.0
"""Findings about ETP operations, their operands and their relations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import Path, show_path
from ...jaxprs.depends import marks_of
from ...published import PathClassification
from ..graph import ETraceGraph
from ..module_info import StateKind, is_barrier
from ..reach import Reach
from ..relation import HiddenParamOpRelation
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
KEPT_ELSEWHERE = warning(
    Kind.RELATION_EXCLUDED_NON_TEMPORAL,
    "{primitive}({parameter}) reaches no hidden state; its gradient is that of the current step, "
    "without what it does to later steps by the state {states}",
    "Make that a brainstate.HiddenState",
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
INCLUDED = info(Kind.RELATION_INCLUDED, "{primitive}({path}) -> {groups}", "")
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
    """Relations, operations that are none, and what is peculiar about some, as in the program."""
    relations, blocking = iter(found.hidden_param_op_relations), _blocking(found)
    keeping = _keeping(found)
    for reach in found.reach:
        if reach.traced:
            yield from _relation(next(relations), reach)
            yield from _operands(reach)
        else:
            kept = keeping.get(reach.eqn_index, ())
            yield _excluded(reach, blocking.get(reach.eqn_index, ()), kept)


def _blocking(found: ETraceGraph) -> dict[int, list[Reach]]:
    """The first ETP operations that the outputs of those without a near group lead to."""
    info = found.module_info
    ends = [reach for reach in found.reach if reach.far and not reach.near]
    seeds = {reach.eqn.outvars[0]: frozenset({reach.eqn_index}) for reach in ends}
    marks = info.credit(seeds, info.near) if ends else {}
    blocking: dict[int, list[Reach]] = {}
    for reach in found.reach if ends else ():
        for index in marks_of(marks, reach.eqn.invars):
            blocking.setdefault(index, []).append(reach)
    return blocking


def _keeping(found: ETraceGraph) -> dict[int, tuple[Path, ...]]:
    """The states that carry no credit and keep outputs of those without a group for later steps."""
    info = found.module_info
    ends = {r.eqn_index for r in found.reach if not r.far}
    others = [slot for slot in info.slots_of(StateKind.OTHER) if ends and slot.leaves]
    seeds = {v: frozenset({s.path}) for s in others for v in info.invars_of(s)}
    if not any(versions.is_float(v.aval) for v in seeds):
        return {}
    emits = {v: frozenset({i}) for i in ends for v in info.eqns[i].outvars}
    marks = info.credit(seeds, emits=emits)
    used = (*info.hidden_path_to_outvar.values(), *info.jaxpr.outvars[: info.num_out])
    read = marks_of(marks, used)
    kept: dict[int, tuple[Path, ...]] = {}
    for slot in (slot for slot in others if slot.path in read):
        for i in ends & marks_of(marks, info.outvars_of(slot)):
            kept[i] = (*kept.get(i, ()), slot.path)
    return kept


def _excluded(reach: Reach, blocking: Sequence[Reach], kept: tuple[Path, ...]) -> CompilationRecord:
    leaves = [leaf for operand in reach.operands for leaf in operand.leaves]
    held = [leaf for operand in reach.operands for leaf in operand.held]
    if leaves:
        exact = KEPT_ELSEWHERE if kept else NON_TEMPORAL
        finding = WEIGHT_TO_WEIGHT if reach.far else exact
    else:
        finding = HELD_PARAMETER if held else NO_PARAMETER
    cut = "; paths from hidden state to hidden state are cut at it all the same"
    cut = cut if reach.near and is_barrier(reach.eqn) else ""
    about = {
        "near_groups": tuple(sorted(reach.near)),
        "far_groups": tuple(sorted(reach.far)),
        "blocking_primitives": tuple(dict.fromkeys(r.eqn.primitive for r in blocking)),
        "blocking_weight_paths": tuple(dict.fromkeys(p for r in blocking for p in r.paths)),
    }
    about = {name: facts for name, facts in about.items() if facts}
    path = next((path for path, _ in leaves or held), None)
    return finding(reach.eqn, path, kept if finding is KEPT_ELSEWHERE else (), about, cut=cut)


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


def _relation(r: HiddenParamOpRelation, reach: Reach) -> Iterator[CompilationRecord]:
    classes, indices = dict(r.path_classification), tuple(r.group_alignments)
    facts = {"hidden_group_indices": indices, "path_classification": classes}
    told = {"path": r.weight_path, "groups": [*indices]}
    yield INCLUDED(reach.eqn, r.weight_path, r.connected_hidden_paths, facts, **told)
    how = PathClassification.MIXED
    if mixed := tuple(path for path, found in classes.items() if found == how):
        yield PARTIAL_PATH(reach.eqn, r.weight_path, mixed, {"classification": how})
    for group, lies in zip(r.hidden_groups, r.group_alignments.values(), strict=True):
        if lies.mixed and lies.extra and lies.offence is not None:
            factor = math.prod(lies.result[k] for k in lies.extra)
            about = {"group": group.index, "factor": factor}
            told = {"operation": r.primitive.name, "state": show_path(group.hidden_paths[0])}
            yield MIXING_TAIL(lies.offence, r.weight_path, group.hidden_paths, about, **told)
