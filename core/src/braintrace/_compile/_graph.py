# SPDX-License-Identifier: Apache-2.0
"""The compiled graph: everything the executor and the algorithms need to know of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import brainstate

from .. import _jax
from .._errors import CompilationError
from .._jaxpr import depends, differentiable
from .._primitive import is_etp_primitive
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path, show_path
from ._groups import HiddenGroup, find_hidden_groups_from_minfo
from ._module_info import ModuleInfo, StateKind, extract_module_info
from ._perturb import HiddenPerturbation, perturb_hidden
from ._relations import Cone, HiddenParamOpRelation, find_hidden_param_op_relations_from_minfo


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
    records.extend(_plain(path) for path in _plain_parameters(minfo, groups))
    records.extend(_carrier(path) for path in _carriers(minfo, groups))
    records.extend(_unused(path) for path, how in graph.coverage().items() if how == "none")
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


def _plain_parameters(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> list[Path]:
    """Parameters that reach a hidden state other than as a trainable operand."""

    def passes(i: int, eqn: Any, operand: int) -> bool:
        if not is_etp_primitive(eqn.primitive):
            return differentiable(eqn)
        return operand == eqn.primitive.spec.x_invar_index

    seeds = {v: frozenset({p}) for p, vs in minfo.weight_path_to_invars.items() for v in vs}
    marks = depends(minfo.eqns, seeds, passes)
    reaching = {p for g in groups for v in g.hidden_outvars for p in marks.get(v, frozenset())}
    return [path for path in minfo.weight_path_to_invars if path in reaching]


def _carriers(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> list[Path]:
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
        s.path
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


def _unused(path: Path) -> CompilationRecord:
    return CompilationRecord(
        DiagnosticKind.PARAMETER_UNUSED,
        DiagnosticLevel.WARNING,
        f"no differentiable path leads from the parameter {show_path(path)} to the result or to a "
        "hidden state: its gradient is zero",
        weight_path=path,
    )
