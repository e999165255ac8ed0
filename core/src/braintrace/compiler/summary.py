# SPDX-License-Identifier: Apache-2.0
"""What is shown of a compiled graph, as plain records: every picture of it is made from these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax

from ..base import versions
from ..base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ..base.types import show_path
from ..base.units import units_of
from ..base.versions import Atom, Var
from ..jaxprs.depends import Along, depends, operands_behind
from ..jaxprs.positions.alignment import Alignment
from ..show.facts import Flow, GroupFacts, Node, OperationFacts, ParameterFacts, Summary
from .cones import Cone
from .found import Found
from .groups import HiddenGroup, member_of
from .module_info import ModuleInfo
from .program import StateKind, StateSlot
from .reach import Reach


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
        paths={node: slot.path for node, slot in _stores(graph).items()},
        flows=_flows(graph),
        warnings=tuple(r for r in graph.diagnostics if r.level is DiagnosticLevel.WARNING),
    )


def _group(graph: Found, group: HiddenGroup) -> GroupFacts:
    info = graph.module_info
    slots = {slot.path: slot for slot in info.slots_of(StateKind.HIDDEN)}
    return GroupFacts(
        index=group.index,
        eqn=max(info.producers[var] for var in group.hidden_outvars),
        states=group.hidden_paths,
        units=tuple(_units(slots[path])[0] for path in group.hidden_paths),
        positions=group.varshape,
        num_state=group.num_state,
        transition=_transition(graph.cones[group.index]),
    )


def _transition(cone: Cone) -> str:
    """What ``D`` of a group is."""
    if not cone.driving:
        return "not needed"
    if cone.transition is None:
        return "zero"
    if cone.transition.program is not None:
        return "coupled diagonal" if cone.transition.mixed else "coupled"
    return "true diagonal" if cone.transition.mixed else "position-wise"


def _reason(reach: Reach, records: list[CompilationRecord]) -> CompilationRecord | None:
    """The first record left about an operation, which is taken from the list."""
    place = (reach.eqn.primitive.name, versions.source_of(reach.eqn))
    found = next((r for r in records if (r.primitive, r.source) == place), None)
    if found is not None:
        records.remove(found)
    return found


def _operations(graph: Found) -> Iterator[OperationFacts]:
    """Relations and excluded operations, in the order of the program."""
    records = [r for r in graph.diagnostics if r.kind.value.startswith("relation_excluded_")]
    relations = iter(graph.hidden_param_op_relations)
    for reach in graph.reach:
        traced = [operand for operand in reach.operands if operand.leaves]
        relation = next(relations) if reach.traced else None
        record = None if relation else _reason(reach, records)
        lies = relation.group_alignments if relation else {}
        yield OperationFacts(
            eqn=reach.eqn_index,
            relation=relation.index if relation else None,
            primitive=reach.eqn.primitive.name,
            parameters=tuple(dict.fromkeys(leaf[0] for o in traced for leaf in o.leaves)),
            shapes=tuple(tuple(o.atom.aval.shape) for o in traced),
            groups=tuple(lies),
            alignment=tuple(map(_lies, lies.values())),
            source=versions.source_of(reach.eqn),
            kind=record.kind.value if record else "",
            reason=record.message if record else "",
        )


def _lies(found: Alignment) -> str:
    """How the axes of ``y`` lie in the positions of a group."""
    if found.is_identity:
        return "axis by axis"
    if found.elements is not None:
        return "element by element"
    pairs = [f"{i}->{axis}" for i, axis in enumerate(found.axes) if axis is not None]
    mixed = [f"{i} mixed" for i in found.mixed]
    return ", ".join([*pairs, *mixed]) or "broadcast"


def _parameters(graph: Found) -> Iterator[ParameterFacts]:
    info = graph.module_info
    leaves = {slot.path: _leaves(info, slot) for slot in info.slots_of(StateKind.PARAM)}
    relations = graph.hidden_param_op_relations
    traced = [(path, r.index) for r in relations for path in r.parameter_paths]
    for path, how in graph.coverage().items():
        if path in graph.frozen:  # a frozen parameter may have a gradient all the same
            how = "frozen" if how == "none" else f"{how} (frozen)"
        indices = tuple(index for owner, index in traced if owner == path)
        yield ParameterFacts(path, leaves.get(path, ()), how, indices)


def _leaves(minfo: ModuleInfo, slot: StateSlot) -> tuple[str, ...]:
    """``weight: float32[3,4] mV`` for every leaf of a parameter."""
    tree = jax.tree.unflatten(slot.treedef, list(range(len(slot.leaves))))
    types = [var.aval.str_short() for var in minfo.invars_of(slot)]
    found = []
    for (path, place), unit in zip(jax.tree.leaves_with_path(tree), _units(slot), strict=True):
        keys = [getattr(part, "key", getattr(part, "idx", None)) for part in path]
        name = show_path(tuple(key for key in keys if key is not None))
        found.append(f"{name}: " * bool(name) + types[place] + f" {unit}" * bool(unit))
    return tuple(found)


def _units(slot: StateSlot) -> tuple[str, ...]:
    """The unit of every leaf of a state; empty for plain numbers."""
    return tuple("" if unit.is_unitless else str(unit) for unit in units_of(slot.treedef)[0])


def _stores(graph: Found) -> dict[Node, StateSlot]:
    """Parameters, and states that carry hidden values to the next step without being hidden."""
    info = graph.module_info
    records = graph.explain(kind=DiagnosticKind.CREDIT_THROUGH_OTHER_STATE)
    carriers = {path for record in records for path in record.hidden_paths}
    stores: dict[Node, StateSlot] = {
        ("plain", k): slot for k, slot in enumerate(info.slots_of(StateKind.PARAM))
    }
    return stores | {("state", k): s for k, s in enumerate(info.slots) if s.path in carriers}


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
    ops = {reach.eqn.outvars[0]: ("op", reach.eqn_index) for reach in graph.reach}
    nodes = ops | {v: ("new", g) for v, g in member_of(graph.hidden_groups).items()}
    marks = depends(
        minfo.eqns,
        _sources(graph),
        emits=lambda i, eqn: frozenset(nodes[v] for v in eqn.outvars if v in nodes),
        through=lambda var, found: frozenset({nodes[var]}) if var in nodes else found,
        along=along,
    )

    def behind(atoms: Iterable[Atom]) -> frozenset[Node]:
        return frozenset(m for a in atoms if versions.is_var(a) for m in marks.get(a, ()))

    def into(var: Var) -> frozenset[Node]:
        if var in ops:
            return frozenset({ops[var]})
        eqn = minfo.eqns[minfo.producers[var]]
        return behind(eqn.invars[k] for k in operands_behind(eqn, [eqn.outvars.index(var)], along))

    found: dict[Node, frozenset[Node]] = {}
    for reach in graph.reach:
        weights = {operand.position for operand in reach.operands if operand.key}
        others = (atom for k, atom in enumerate(reach.eqn.invars) if k not in weights)
        computed = {m for m in behind(reach.eqn.invars[k] for k in weights) if m[0] != "plain"}
        found["op", reach.eqn_index] = behind(others) | computed
    for group in graph.hidden_groups:
        found["group", group.index] = frozenset().union(*map(into, group.hidden_outvars))
    for node, slot in _stores(graph).items():
        if node[0] == "state":
            found[node] = behind(minfo.outvars_of(slot)) - {node}
    found["output", 0] = behind(minfo.jaxpr.outvars[: minfo.num_out])
    return found


def _sources(graph: Found) -> dict[Var, frozenset[Node]]:
    """The variables that values of a step come from."""
    minfo = graph.module_info
    seeds: dict[Var, Node] = dict.fromkeys(minfo.jaxpr.invars[: minfo.num_args], ("input", 0))
    seeds |= {v: ("old", g.index) for g in graph.hidden_groups for v in g.hidden_invars}
    for node, slot in _stores(graph).items():
        seeds |= dict.fromkeys(minfo.invars_of(slot), node)
    return {var: frozenset({node}) for var, node in seeds.items()}
