# SPDX-License-Identifier: Apache-2.0
"""Relations: which ETP operation, with which parameters, drives which hidden group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import brainstate

from .. import _jax
from .._errors import NotSupportedError
from .._jax import Var
from .._jaxpr import etp_equations
from .._positions import Alignment, align
from ._cones import Cone, find_cone
from ._diagnostics import CompilationRecord, show_path
from ._findings import (
    cross_group_records,
    excluded,
    included,
    partial_path,
    transition_records,
    untraced_operands,
)
from ._groups import HiddenGroup, find_hidden_groups_from_minfo
from ._module_info import ModuleInfo, extract_module_info
from ._operations import (
    HiddenParamOpRelation,
    TrainableOperand,
    refuse_dynamic,
    weight_operands,
)
from ._reach import classify, crossed_reach, far_reach, near_reach


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
        find_cone(minfo, groups, g, [minfo.eqns[i].outvars[0] for i in sorted(driven[g.index])])
        for g in groups
    )
    for group in groups:
        if driven[group.index]:
            _check_transition(minfo, group, cones[group.index])
            records.extend(transition_records(group, cones[group.index]))
    records.extend(cross_group_records(minfo, groups, driven))
    crossed = crossed_reach(minfo)
    relations = tuple(
        _relation(minfo, groups, cones, crossed, index, *operation)
        for index, operation in enumerate(found)
    )
    records.extend(included(relation, groups) for relation in relations)
    records.extend(
        partial_path(r) for r in relations if "partial" in r.path_classification.values()
    )
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
    reached, far = near_reach(minfo, groups), far_reach(minfo, groups)
    found: list[Traceable] = []
    records: list[CompilationRecord] = []
    for i in etp_equations(minfo.eqns):
        eqn = minfo.eqns[i]
        operands = tuple(weight_operands(minfo, i))
        if not reached[i] or not any(o.leaves for o in operands):
            records.append(excluded(eqn, operands, reached[i], far.get(i, frozenset())))
            continue
        refuse_dynamic(minfo, eqn, operands)
        records.extend(untraced_operands(eqn, operands))
        found.append((i, operands, reached[i]))
    return found, records


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
        path_classification=classify(crossed, eqn_index, [groups[g] for g in alignments]),
        source=_jax.source_of(eqn),
    )
