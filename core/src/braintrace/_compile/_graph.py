# SPDX-License-Identifier: Apache-2.0
"""The compiled graph: everything the executor and the algorithms need to know of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import brainstate

from .. import _jax
from .._errors import CompilationError
from ._cones import Cone
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path, show_path
from ._findings import carrier_records, plain_parameter_records, unused
from ._groups import HiddenGroup, find_hidden_groups_from_minfo
from ._module_info import ModuleInfo, StateKind, extract_module_info
from ._operations import HiddenParamOpRelation
from ._perturb import HiddenPerturbation, perturb_hidden
from ._relations import find_hidden_param_op_relations_from_minfo


@dataclass(frozen=True, eq=False)
class ETraceGraph:
    """A compiled model.

    Attributes
    ----------
    module_info
        One step as a flat program.
    hidden_groups, hid_path_to_group
        The hidden groups, and the group of each hidden state.
    hidden_param_op_relations
        Which ETP operations drive which groups.
    hidden_perturb
        The perturbed step.
    diagnostics
        What the compiler has to say.
    cones
        Per group, the part of the step between its relations and its new values.
    """

    module_info: ModuleInfo
    hidden_groups: tuple[HiddenGroup, ...]
    hid_path_to_group: dict[Path, HiddenGroup]
    hidden_param_op_relations: tuple[HiddenParamOpRelation, ...]
    hidden_perturb: HiddenPerturbation
    diagnostics: tuple[CompilationRecord, ...]
    cones: tuple[Cone, ...]

    def coverage(self) -> dict[Path, str]:
        """How the gradient of each parameter arises.

        ``'trace'`` (through the eligibility trace), ``'direct'`` (ordinary derivative of the
        current step), ``'trace+direct'``, or ``'none'``.
        """
        direct = self.hidden_perturb.direct_leaves
        traced = {p for r in self.hidden_param_op_relations for p in r.trainable_paths}
        covered = {}
        for path, leaves in self.module_info.weight_path_to_invars.items():
            ways = ["trace"] * (path in traced) + ["direct"] * any(v in direct for v in leaves)
            covered[path] = "+".join(ways) or "none"
        return covered | dict.fromkeys(self.module_info.unread_parameters, "none")

    def explain(
        self,
        *,
        weight_path: Path | None = None,
        hidden_path: Path | None = None,
        kind: DiagnosticKind | None = None,
    ) -> list[CompilationRecord]:
        """The diagnostics about a parameter, a hidden state or of a kind."""
        return [
            record
            for record in self.diagnostics
            if (weight_path is None or record.weight_path == weight_path)
            and (hidden_path is None or hidden_path in record.hidden_paths)
            and (kind is None or record.kind is kind)
        ]

    def report(self) -> str:
        """What the compiler found, as text for a terminal."""
        groups = [
            (
                str(g.index),
                ", ".join(show_path(p) for p in g.hidden_paths),
                str(g.varshape),
                str(g.num_state),
                "position-wise" if self.cones[g.index].old_reaches else "zero",
            )
            for g in self.hidden_groups
        ]
        relations = [
            (
                r.primitive.name,
                ", ".join(show_path(p) for p in r.trainable_paths),
                ", ".join(str(g) for g in r.group_alignments),
                r.source,
            )
            for r in self.hidden_param_op_relations
        ]
        shapes = self.module_info.weight_path_to_invars
        parameters = [
            (show_path(path), ", ".join(v.aval.str_short() for v in shapes.get(path, ())), how)
            for path, how in self.coverage().items()
        ]
        return "\n\n".join(
            [
                _table(("group", "hidden states", "positions", "states", "transition D"), groups),
                _table(("operation", "parameters", "drives group", "source"), relations),
                _table(("parameter", "leaves", "gradient"), parameters),
            ]
        )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def compile_etrace_graph(model: brainstate.nn.Module, *args: Any) -> ETraceGraph:
    """Compile one step of a model.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` whose states are initialised.
    *args
        Example arguments of one step.

    Returns
    -------
    ETraceGraph
        The compiled graph. Its WARNING records are also issued as ``UserWarning``.

    Raises
    ------
    CompilationError
        When the model has no hidden state or no parameter, or its states are inconsistent.
    NotSupportedError
        When a gradient would not be right; the text names the line and a remedy.
    """
    minfo = extract_module_info(model, *args)
    _require(minfo)
    groups, path_to_group = find_hidden_groups_from_minfo(minfo)
    relations, cones, records = find_hidden_param_op_relations_from_minfo(minfo, groups)
    perturb = perturb_hidden(minfo, groups, relations)
    graph = ETraceGraph(minfo, groups, path_to_group, relations, perturb, tuple(records), cones)
    records.extend(plain_parameter_records(minfo, groups))
    records.extend(carrier_records(minfo, groups))
    records.extend(unused(path) for path, how in graph.coverage().items() if how == "none")
    for record in records:
        if record.level is DiagnosticLevel.WARNING:
            _jax.warn(str(record))
    return ETraceGraph(minfo, groups, path_to_group, relations, perturb, tuple(records), cones)


def _require(minfo: ModuleInfo) -> None:
    if not minfo.slots_of(StateKind.HIDDEN):
        raise CompilationError(
            "the model has no brainstate.HiddenState, so there is nothing to trace. If it has one, "
            "initialise the states first: brainstate.nn.init_all_states(model, batch_size=...)"
        )
    if not minfo.slots_of(StateKind.PARAM):
        raise CompilationError("the model uses no brainstate.ParamState, so nothing is trainable")
