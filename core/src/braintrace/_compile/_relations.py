# SPDX-License-Identifier: Apache-2.0
"""Relations: which ETP operation, with which parameters, drives which hidden group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate

from .. import _jax
from .._errors import CompilationError, NotSupportedError
from .._jax import Atom, JaxprEqn, Var
from .._jaxpr import depends, differentiable, etp_equations, slice_to
from .._positions import Alignment, align
from .._primitive import ETPPrimitive, ETPPrimitiveSpec
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path, show_path
from ._groups import HiddenGroup, find_hidden_groups_from_minfo, is_barrier, member_of, near_paths
from ._module_info import DYNAMIC, ModuleInfo, StateKind, extract_module_info

Leaf = tuple[Path, int]
"""A parameter's path and the index of one of its leaves."""


@dataclass(frozen=True, eq=False)
class TrainableOperand:
    """A trainable operand of an ETP equation and the parameter leaves it is made from.

    ``chain`` holds the indices of the parameter-only equations that lead from the leaves to it.
    """

    key: str
    position: int
    atom: Atom
    leaves: tuple[Leaf, ...]
    chain: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class HiddenParamOpRelation:
    """An ETP equation with its parameters and the hidden groups it drives.

    Attributes
    ----------
    index, eqn_index
        Number of the relation, and of its equation in the program.
    primitive, eqn_params
        The ETP primitive and the parameters it is bound with.
    x_var, y_var
        Variables of the input (``None`` for an operation without one) and the output.
    operands
        Every operand of the equation.
    trainables, constants
        The operands that are traced, and the others that are not ``x`` (constant over time).
    group_alignments
        Per driven group, by index: how the axes of ``y`` lie in the group's positions.
    path_classification
        Per driven hidden state: ``'all_direct'``, or ``'partial'`` when other paths to it cross a
        further ETP operation (their gradient is that of the current step).
    source
        The user's ``file:line (function)``.
    """

    index: int
    eqn_index: int
    primitive: ETPPrimitive
    eqn_params: Mapping[str, Any]
    x_var: Atom | None
    y_var: Var
    operands: tuple[Atom, ...]
    trainables: tuple[TrainableOperand, ...]
    constants: tuple[TrainableOperand, ...]
    group_alignments: Mapping[int, Alignment]
    path_classification: Mapping[Path, str]
    source: str

    @property
    def spec(self) -> ETPPrimitiveSpec:
        """The specification of the primitive."""
        return self.primitive.spec

    @property
    def trainable_paths(self) -> tuple[Path, ...]:
        """Paths of the parameters, each once."""
        return tuple(dict.fromkeys(leaf[0] for t in self.trainables for leaf in t.leaves))

    @property
    def weight_path(self) -> Path:
        """Path of the first parameter."""
        return self.trainable_paths[0]

    path = weight_path


@dataclass(frozen=True, eq=False)
class Cone:
    """The part of a step that leads to a hidden group without crossing an ETP operation.

    Its inputs are the group's old values, the outputs ``y`` of its relations, and ``free``
    variables, which are held constant.
    """

    group: int
    eqns: tuple[int, ...]
    free: tuple[Var, ...]
    old_reaches: bool


def find_hidden_param_op_relations_from_minfo(
    minfo: ModuleInfo, groups: Sequence[HiddenGroup]
) -> tuple[tuple[HiddenParamOpRelation, ...], tuple[Cone, ...], list[CompilationRecord]]:
    """Relations, the cone of every group, and what was found on the way.

    Raises
    ------
    NotSupportedError
        When a traced operand depends on both parameters and inputs or states, or a path to a
        hidden state mixes positions.
    """
    groups = tuple(groups)
    found, records = _traceable(minfo, groups)
    driven = [{i for i, _, reached in found if g.index in reached} for g in groups]
    cones = tuple(
        _cone(minfo, groups, g, [minfo.eqns[i].outvars[0] for i in sorted(driven[g.index])])
        for g in groups
    )
    for group in groups:
        if driven[group.index]:
            _check_transition(minfo, group, cones[group.index])
            records.extend(_transition_records(group, cones[group.index]))
    records.extend(_cross_group_records(minfo, groups, driven))
    crossed = _crossed_reach(minfo)
    relations = tuple(
        _relation(minfo, groups, cones, crossed, index, *operation)
        for index, operation in enumerate(found)
    )
    records.extend(_included(relation, groups) for relation in relations)
    records.extend(_partial(r) for r in relations if "partial" in r.path_classification.values())
    return relations, cones, records


def find_hidden_param_op_relations_from_module(
    model: brainstate.nn.Module, *args: Any
) -> tuple[HiddenParamOpRelation, ...]:
    """The relations of ``extract_module_info(model, *args)``."""
    minfo = extract_module_info(model, *args)
    groups, _ = find_hidden_groups_from_minfo(minfo)
    return find_hidden_param_op_relations_from_minfo(minfo, groups)[0]


Traceable = tuple[int, tuple[TrainableOperand, ...], frozenset[int]]
"""An ETP equation with parameters, its operands but ``x``, and the groups it drives."""


def _traceable(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]
) -> tuple[list[Traceable], list[CompilationRecord]]:
    """The ETP equations that become relations, and why the others do not."""
    reached, far = _near_reach(minfo, groups), _far_reach(minfo, groups)
    found: list[Traceable] = []
    records: list[CompilationRecord] = []
    for i in etp_equations(minfo.eqns):
        eqn = minfo.eqns[i]
        operands = tuple(_weight_operands(minfo, i))
        if not reached[i] or not any(o.leaves for o in operands):
            records.append(_excluded(eqn, operands, reached[i], far.get(i, frozenset())))
            continue
        _refuse_dynamic(minfo, eqn, operands)
        records.extend(_untraced_operands(eqn, operands))
        found.append((i, operands, reached[i]))
    return found, records


# --- which operation reaches which group -----------------------------------------------------


def _near_reach(minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]) -> dict[int, frozenset[int]]:
    """For each ETP equation: the groups it reaches without crossing another one.

    A path that passes a hidden state of one group ends there for all the others: the rest of it
    belongs to that state's learning signal.
    """
    member = member_of(groups)

    def through(var: Var, marks: frozenset[Any]) -> frozenset[Any]:
        g = member.get(var)
        if g is None:
            return marks
        return frozenset((i, g) for i, via in marks if via in (None, g))

    etp = etp_equations(minfo.eqns)
    marks = depends(
        minfo.eqns,
        {},
        near_paths(minfo),
        emits=lambda i, eqn: frozenset({(i, None)}) if i in etp else frozenset(),
        through=through,
    )
    reached: dict[int, set[int]] = {i: set() for i in etp}
    for var, g in member.items():
        for i, via in marks.get(var, frozenset()):
            if via == g:
                reached[i].add(g)
    return {i: frozenset(found) for i, found in reached.items()}


def _far_reach(minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]) -> dict[int, frozenset[int]]:
    """For each ETP equation: the groups it reaches by any differentiable path."""
    etp = etp_equations(minfo.eqns)
    marks = depends(
        minfo.eqns,
        {},
        lambda i, eqn, operand: differentiable(eqn),
        emits=lambda i, eqn: frozenset({i}) if i in etp else frozenset(),
    )
    reached: dict[int, set[int]] = {}
    for var, g in member_of(groups).items():
        for i in marks.get(var, frozenset()):
            reached.setdefault(i, set()).add(g)
    return {i: frozenset(found) for i, found in reached.items()}


# --- trainable operands ----------------------------------------------------------------------


def _weight_operands(minfo: ModuleInfo, eqn_index: int) -> list[TrainableOperand]:
    """Every operand but ``x``, with the parameter leaves behind the trainable ones."""
    eqn = minfo.eqns[eqn_index]
    spec = eqn.primitive.spec
    rank = {
        (slot.path, k): (n, k)
        for n, slot in enumerate(minfo.slots_of(StateKind.PARAM))
        for k in range(len(slot.leaves))
    }
    keys = {position: key for key, position in spec.resolve_trainable_invars(eqn.params).items()}
    missing = [position for position in keys if position >= len(eqn.invars)]
    if missing:
        raise CompilationError(
            f"the primitive {spec.name!r} names operand {missing[0]} ({keys[missing[0]]!r}) as "
            f"trainable, but at {_jax.source_of(eqn)} it is bound with {len(eqn.invars)} operands; "
            "give it a trainable_invars_fn that says where its trainable operands stand"
        )
    operands = []
    for position, atom in enumerate(eqn.invars):
        if position == spec.x_invar_index:
            continue
        behind = minfo.origins.get(atom, frozenset()) if _jax.is_var(atom) else frozenset()
        leaves = sorted(behind - {DYNAMIC}, key=rank.__getitem__) if position in keys else []
        chain = () if DYNAMIC in behind else tuple(slice_to(minfo.eqns[:eqn_index], [atom]))
        operands.append(
            TrainableOperand(keys.get(position, ""), position, atom, tuple(leaves), chain)
        )
    return operands


def _refuse_dynamic(minfo: ModuleInfo, eqn: JaxprEqn, operands: Sequence[TrainableOperand]) -> None:
    for operand in operands:
        if _jax.is_var(operand.atom) and DYNAMIC in minfo.origins.get(operand.atom, ()):
            name = f"operand {operand.position}"
            name = f"operand {operand.key!r} ({name})" if operand.key else name
            raise NotSupportedError(
                f"{name} of {eqn.primitive.name!r} at {_jax.source_of(eqn)} depends on "
                "inputs or states of the step; everything but x must be made of parameters and "
                "constants, because its trace is kept over time. Apply a factor or a bias that "
                "changes from step to step to the input or to the output of the operation"
            )


def _untraced_operands(
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


# --- cones -----------------------------------------------------------------------------------


def _cone(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...], group: HiddenGroup, ys: Sequence[Var]
) -> Cone:
    member = member_of(groups)
    sources = {*group.hidden_invars, *ys}
    passes_near = near_paths(minfo)

    def cut(var: Var) -> bool:
        return member.get(var, group.index) != group.index

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        return passes_near(i, eqn, operand) and not (_jax.is_var(atom) and cut(atom))

    behind = set(slice_to(minfo.eqns, group.hidden_outvars, enters))
    marks = depends(
        minfo.eqns,
        {var: frozenset({var}) for var in group.hidden_invars},
        enters,
        emits=lambda i, eqn: frozenset(eqn.outvars) & frozenset(ys),
    )
    eqns = tuple(
        i
        for i in sorted(behind)
        if not is_barrier(minfo.eqns[i]) and any(marks.get(var) for var in minfo.eqns[i].outvars)
    )
    inner = {var for i in eqns for var in minfo.eqns[i].outvars} | sources
    read = [atom for i in eqns for atom in minfo.eqns[i].invars if _jax.is_var(atom)]
    free = dict.fromkeys(var for var in (*read, *group.hidden_outvars) if var not in inner)
    old_reaches = any(
        old in marks.get(new, frozenset())
        for new in group.hidden_outvars
        for old in group.hidden_invars
    )
    return Cone(group.index, eqns, tuple(free), old_reaches)


def _check_transition(minfo: ModuleInfo, group: HiddenGroup, cone: Cone) -> None:
    eqns = [minfo.eqns[i] for i in cone.eqns]
    for path, old in zip(group.hidden_paths, group.hidden_invars, strict=True):
        shape = old.aval.shape[: group.ndim]
        found = align(eqns, old, group.hidden_outvars, group.ndim, group.ndim)
        if found is None or (found.position_wise and found.is_identity(shape, group.varshape)):
            continue
        raise NotSupportedError(
            f"the transition of the hidden state {show_path(path)} mixes positions at "
            f"{_where(minfo, group, found)}: the diagonal Jacobian of D-RTRL would not be its "
            "derivative. "
            + _remedy(
                found,
                "Make the recurrent product an ETP operation (braintrace.matmul, conv, ...), or "
                "keep the state's path element-wise",
            )
        )


def _remedy(found: Alignment | None, remedy: str) -> str:
    name = "" if found is None or found.offence is None else found.offence.primitive.name
    if name in ("cond", "scan", "while"):
        return "Control flow on a state's path is not supported; use jnp.where, or unroll the loop"
    return remedy


def _where(minfo: ModuleInfo, group: HiddenGroup, found: Alignment) -> str:
    if found.offence is None:
        news = set(group.hidden_outvars)
        last = next(e for e in reversed(minfo.eqns) if news.intersection(e.outvars))
        return f"a transposition of its axes (before {_jax.source_of(last)})"
    return f"{found.offence.primitive.name!r} ({_jax.source_of(found.offence)})"


def _transition_records(group: HiddenGroup, cone: Cone) -> list[CompilationRecord]:
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


def _cross_group_records(
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


# --- relations and their records --------------------------------------------------------------


def _relation(
    minfo: ModuleInfo,
    groups: tuple[HiddenGroup, ...],
    cones: tuple[Cone, ...],
    crossed: Mapping[Var, frozenset[int]],
    index: int,
    eqn_index: int,
    weights: tuple[TrainableOperand, ...],
    driven: frozenset[int],
) -> HiddenParamOpRelation:
    eqn = minfo.eqns[eqn_index]
    spec, y_var = eqn.primitive.spec, eqn.outvars[0]
    alignments = {}
    for g in sorted(driven):
        eqns = [minfo.eqns[i] for i in cones[g].eqns]
        found = align(eqns, y_var, groups[g].hidden_outvars, groups[g].ndim, y_var.aval.ndim)
        if found is None or not found.position_wise:
            where = "its tail" if found is None else _where(minfo, groups[g], found)
            raise NotSupportedError(
                f"between {eqn.primitive.name!r} at {_jax.source_of(eqn)} and the hidden state "
                f"{show_path(groups[g].hidden_paths[0])}, positions are mixed at {where}: the "
                "position-wise factor f would not be the derivative. Use one operation per gate "
                "instead of slicing one output, and keep normalisation, pooling and dense "
                "products in front of the operation"
            )
        alignments[g] = found
    x_index = spec.x_invar_index
    return HiddenParamOpRelation(
        index=index,
        eqn_index=eqn_index,
        primitive=eqn.primitive,
        eqn_params=dict(eqn.params),
        x_var=None if x_index is None else eqn.invars[x_index],
        y_var=y_var,
        operands=tuple(eqn.invars),
        trainables=tuple(o for o in weights if o.leaves),
        constants=tuple(o for o in weights if not o.leaves),
        group_alignments=alignments,
        path_classification=_classify(crossed, eqn_index, [groups[g] for g in alignments]),
        source=_jax.source_of(eqn),
    )


def _crossed_reach(minfo: ModuleInfo) -> dict[Var, frozenset[int]]:
    """For each variable: the ETP equations that reach it through a further one, in one sweep."""

    def passes(i: int, eqn: JaxprEqn, operand: int) -> bool:
        return differentiable(eqn)

    etp = set(etp_equations(minfo.eqns))
    behind = depends(
        minfo.eqns, {}, passes, lambda i, eqn: frozenset({i}) if i in etp else frozenset()
    )

    def crossing(i: int, eqn: JaxprEqn) -> frozenset[int]:
        if not is_barrier(eqn):
            return frozenset()
        return frozenset().union(*(behind.get(a, ()) for a in eqn.invars if _jax.is_var(a)))

    return depends(minfo.eqns, {}, passes, crossing)


def _classify(
    crossed: Mapping[Var, frozenset[int]], eqn_index: int, groups: Sequence[HiddenGroup]
) -> dict[Path, str]:
    """Which states an operation also reaches through another ETP operation."""
    return {
        path: "partial" if eqn_index in crossed.get(var, ()) else "all_direct"
        for group in groups
        for path, var in zip(group.hidden_paths, group.hidden_outvars, strict=True)
    }


def _partial(relation: HiddenParamOpRelation) -> CompilationRecord:
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


def _included(
    relation: HiddenParamOpRelation, groups: tuple[HiddenGroup, ...]
) -> CompilationRecord:
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


def _excluded(
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
