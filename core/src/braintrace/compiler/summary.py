# SPDX-License-Identifier: Apache-2.0
"""What is shown of a compiled graph, as plain records: every picture of it is made from these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import saiunit

from ..base import versions
from ..base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ..base.types import Path, show_path
from ..base.versions import JaxprEqn, Var
from ..jaxprs.depends import Along, depends, operands_behind
from ..jaxprs.sites import etp_equations
from ..show.facts import Flow, GroupFacts, Node, OperationFacts, ParameterFacts, Summary
from .found import Found
from .groups import HiddenGroup, member_of
from .module_info import ModuleInfo
from .operands import weight_operands
from .program import StateKind, StateSlot
from .relation import HiddenParamOpRelation


def summarize(graph: Found) -> Summary:
    """The facts of a graph that are shown."""
    minfo = graph.module_info
    outs = minfo.jaxpr.outvars[: minfo.num_out]
    return Summary(
        inputs=tuple(v.aval.str_short() for v in minfo.jaxpr.invars[: minfo.num_args]),
        outputs=tuple(v.aval.str_short() for v in outs),
        groups=tuple(_group(graph, group) for group in graph.hidden_groups),
        operations=tuple(_operations(graph)),
        parameters=tuple(_parameters(graph)),
        paths=_paths(graph),
        flows=_flows(graph),
        warnings=tuple(r for r in graph.diagnostics if r.level is DiagnosticLevel.WARNING),
    )


# --- groups, operations, parameters -----------------------------------------------------------


def _group(graph: Found, group: HiddenGroup) -> GroupFacts:
    slots = {slot.path: slot for slot in graph.module_info.slots_of(StateKind.HIDDEN)}
    news = set(group.hidden_outvars)
    made = [i for i, eqn in enumerate(graph.module_info.eqns) if news.intersection(eqn.outvars)]
    return GroupFacts(
        index=group.index,
        eqn=made[-1],
        states=group.hidden_paths,
        units=tuple(_units(slots[path])[0] for path in group.hidden_paths),
        positions=group.varshape,
        num_state=group.num_state,
        transition=_transition(graph, group),
    )


def _transition(graph: Found, group: HiddenGroup) -> str:
    """What ``D`` of a group is."""
    cone = graph.cones[group.index]
    if not any(group.index in r.group_alignments for r in graph.hidden_param_op_relations):
        return "not needed"
    if cone.transition is None:
        return "zero"
    if cone.transition.program is not None:
        return "coupled diagonal" if cone.transition.mixed else "coupled"
    return "true diagonal" if cone.transition.mixed else "position-wise"


def _operations(graph: Found) -> Iterator[OperationFacts]:
    """Relations and excluded operations, in the order of the program."""
    minfo = graph.module_info
    relations = {relation.eqn_index: relation for relation in graph.hidden_param_op_relations}
    reasons = [r for r in graph.diagnostics if r.kind.value.startswith("relation_excluded_")]
    for i in etp_equations(minfo.eqns):
        if i in relations:
            yield _included(graph, relations[i])
        else:
            yield _excluded(minfo, i, reasons)


def _included(graph: Found, relation: HiddenParamOpRelation) -> OperationFacts:
    groups = tuple(relation.group_alignments)
    return OperationFacts(
        eqn=relation.eqn_index,
        relation=relation.index,
        primitive=relation.primitive.name,
        parameters=relation.parameter_paths,
        shapes=tuple(tuple(t.atom.aval.shape) for t in relation.trainables),
        groups=groups,
        alignment=tuple(_lies(relation, graph.hidden_groups[g]) for g in groups),
        source=relation.source,
    )


def _lies(relation: HiddenParamOpRelation, group: HiddenGroup) -> str:
    """How the axes of ``y`` lie in the positions of a group."""
    found = relation.group_alignments[group.index]
    if found.is_identity:
        return "axis by axis"
    if found.elements is not None:
        return "element by element"
    pairs = [f"{i}->{axis}" for i, axis in enumerate(found.axes) if axis is not None]
    mixed = [f"{i} mixed" for i in found.mixed]
    return ", ".join([*pairs, *mixed]) or "broadcast"


def _excluded(minfo: ModuleInfo, i: int, reasons: list[CompilationRecord]) -> OperationFacts:
    """An operation without a trace, with the first record about it that is not used up."""
    eqn = minfo.eqns[i]
    operands = [o for o in weight_operands(minfo, i) if o.leaves]
    paths = tuple(dict.fromkeys(leaf[0] for operand in operands for leaf in operand.leaves))
    source, name = versions.source_of(eqn), eqn.primitive.name
    about = (paths[0] if paths else None, name, source)
    record = next((r for r in reasons if (r.weight_path, r.primitive, r.source) == about), None)
    if record is not None:
        reasons.remove(record)
    return OperationFacts(
        eqn=i,
        relation=None,
        primitive=name,
        parameters=paths,
        shapes=tuple(tuple(o.atom.aval.shape) for o in operands),
        groups=(),
        alignment=(),
        source=source,
        kind=record.kind.value if record else "",
        reason=record.message if record else "",
    )


def _parameters(graph: Found) -> Iterator[ParameterFacts]:
    slots = {slot.path: slot for slot in graph.module_info.slots_of(StateKind.PARAM)}
    relations: dict[Path, list[int]] = {}
    for relation in graph.hidden_param_op_relations:
        for path in relation.parameter_paths:
            relations.setdefault(path, []).append(relation.index)
    for path, how in graph.coverage().items():
        leaves = _leaves(graph.module_info, slots[path]) if path in slots else ()
        yield ParameterFacts(path, leaves, _how(graph, path, how), tuple(relations.get(path, ())))


def _how(graph: Found, path: Path, how: str) -> str:
    """How a gradient arises; a frozen parameter may have one all the same."""
    if path not in graph.frozen:
        return how
    return "frozen" if how == "none" else f"{how} (frozen)"


def _leaves(minfo: ModuleInfo, slot: StateSlot) -> tuple[str, ...]:
    """``weight: float32[3,4] mV`` for every leaf of a parameter."""
    tree = jax.tree.unflatten(slot.treedef, list(range(len(slot.leaves))))
    names = [_key(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    types = [var.aval.str_short() for var in minfo.invars_of(slot)]
    return tuple(
        (f"{name}: " if name else "") + type_ + (f" {unit}" if unit else "")
        for name, type_, unit in zip(names, types, _units(slot), strict=True)
    )


def _key(path: Sequence[Any]) -> str:
    names = [getattr(part, "key", getattr(part, "idx", None)) for part in path]
    return show_path(tuple(name for name in names if name is not None))


def _units(slot: StateSlot) -> tuple[str, ...]:
    """The unit of every leaf of a state; empty for plain numbers."""
    tree = jax.tree.unflatten(slot.treedef, [0.0] * len(slot.leaves))
    values = jax.tree.leaves(tree, is_leaf=lambda v: isinstance(v, saiunit.Quantity))
    units = [getattr(value, "unit", None) for value in values]
    return tuple("" if u is None or u.is_unitless else str(u) for u in units)


# --- flows ------------------------------------------------------------------------------------


def _carriers(graph: Found) -> list[tuple[int, StateSlot]]:
    """States that carry hidden values to the next step without being hidden states."""
    records = graph.explain(kind=DiagnosticKind.CREDIT_THROUGH_OTHER_STATE)
    paths = {path for record in records for path in record.hidden_paths}
    slots = graph.module_info.slots
    return [(k, s) for k, s in enumerate(slots) if s.path in paths and s.kind is StateKind.OTHER]


def _paths(graph: Found) -> dict[Node, Path]:
    plain = enumerate(graph.module_info.slots_of(StateKind.PARAM))
    named: dict[Node, Path] = {("plain", k): slot.path for k, slot in plain}
    return named | {("state", k): slot.path for k, slot in _carriers(graph)}


def _flows(graph: Found) -> tuple[Flow, ...]:
    every = _inflows(graph, Along.VALUES)
    credit = _inflows(graph, Along.DERIVATIVES)
    return tuple(
        Flow(source, target, source[0] == "input" or source in credit.get(target, ()))
        for target, sources in every.items()
        for source in sorted(sources)
        if not (target[0] == "group" and source in (("old", target[1]), ("new", target[1])))
    )


def _inflows(graph: Found, along: Along) -> dict[Node, frozenset[Node]]:
    """Per operation, group, carrier and output: the nodes whose values enter it directly."""
    minfo = graph.module_info
    ops = {minfo.eqns[i].outvars[0]: ("op", i) for i in etp_equations(minfo.eqns)}
    nodes = ops | {v: ("new", g) for v, g in member_of(graph.hidden_groups).items()}
    marks = depends(
        minfo.eqns,
        _sources(graph),
        emits=lambda i, eqn: frozenset(nodes[v] for v in eqn.outvars if v in nodes),
        through=lambda var, found: frozenset({nodes[var]}) if var in nodes else found,
        along=along,
    )

    def behind(atoms: Iterable[Any]) -> frozenset[Node]:
        return frozenset(m for a in atoms if versions.is_var(a) for m in marks.get(a, ()))

    def into(var: Var) -> frozenset[Node]:
        if var in ops:
            return frozenset({ops[var]})
        eqn, k = made[var]
        return behind(eqn.invars[i] for i in operands_behind(eqn, [k], along))

    made = {var: (eqn, k) for eqn in minfo.eqns for k, var in enumerate(eqn.outvars)}
    found: dict[Node, frozenset[Node]] = {}
    for op in ops.values():
        weights, others = _operands(minfo.eqns[op[1]])
        found[op] = behind(others) | {m for m in behind(weights) if m[0] != "plain"}
    for group in graph.hidden_groups:
        found["group", group.index] = frozenset().union(*map(into, group.hidden_outvars))
    for k, slot in _carriers(graph):
        found["state", k] = behind(minfo.outvars_of(slot)) - {("state", k)}
    found["output", 0] = behind(minfo.jaxpr.outvars[: minfo.num_out])
    return found


def _operands(eqn: JaxprEqn) -> tuple[list[Any], list[Any]]:
    """The trainable operands of an ETP equation, and the others."""
    trainable = set(eqn.primitive.spec.resolve_trainable_invars(eqn.params).values())
    split: tuple[list[Any], list[Any]] = [], []
    for k, atom in enumerate(eqn.invars):
        split[k not in trainable].append(atom)
    return split


def _sources(graph: Found) -> dict[Var, frozenset[Node]]:
    """The variables that values of a step come from."""
    minfo = graph.module_info
    seeds: dict[Var, Node] = dict.fromkeys(minfo.jaxpr.invars[: minfo.num_args], ("input", 0))
    seeds |= {v: ("old", g.index) for g in graph.hidden_groups for v in g.hidden_invars}
    for k, slot in enumerate(minfo.slots_of(StateKind.PARAM)):
        seeds |= dict.fromkeys(minfo.invars_of(slot), ("plain", k))
    for k, slot in _carriers(graph):
        seeds |= dict.fromkeys(minfo.invars_of(slot), ("state", k))
    return {var: frozenset({node}) for var, node in seeds.items()}
