# SPDX-License-Identifier: Apache-2.0
"""Relations: which ETP operation, with which parameters, drives which hidden group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import brainstate

from ..base import versions
from ..base.diagnostics import CompilationRecord
from ..base.errors import CompilationError, NotSupportedError
from ..base.types import Path, show_path
from ..base.versions import JaxprEqn, Var
from ..jaxprs.depends import slice_to
from ..jaxprs.positions.alignment import Alignment, align
from ..jaxprs.sites import etp_equations
from .cones import Cone, find_cone
from .findings.groups import cross_group_records, transition_records
from .findings.operations import (
    excluded,
    included,
    operand_records,
    partial_path,
    tail_not_position_wise,
)
from .findings.record import described
from .groups import HiddenGroup, find_hidden_groups_from_minfo
from .module_info import ModuleInfo
from .operands import TrainableOperand, refuse_dynamic, weight_operands
from .reach import classify, crossed_reach, far_reach, near_reach
from .relation import HiddenParamOpRelation
from .tracing.extract import extract_module_info
from .transitions import check_scope


def find_hidden_param_op_relations_from_minfo(
    minfo: ModuleInfo, path_to_group: Mapping[Path, HiddenGroup] | Sequence[HiddenGroup]
) -> tuple[HiddenParamOpRelation, ...]:
    """The relations of a traced model.

    Parameters
    ----------
    minfo
        A traced model.
    path_to_group
        The groups of its hidden states: either result of ``find_hidden_groups_from_minfo``.

    Raises
    ------
    ValueError
        When groups of the model are missing.
    NotSupportedError
        When a gradient would not be right; the text names the line and a remedy.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> groups, _ = braintrace.find_hidden_groups_from_minfo(minfo)
    >>> relations = braintrace.find_hidden_param_op_relations_from_minfo(minfo, groups)
    >>> [relation.weight_path for relation in relations]
    [('Wz', 'weight'), ('Wh', 'weight')]
    """
    known = path_to_group.values() if isinstance(path_to_group, Mapping) else path_to_group
    groups = sorted(set(known), key=lambda group: group.index)
    held = {path for group in groups for path in group.hidden_paths}
    missing = [path for path in minfo.hidden_path_to_outvar if path not in held]
    if missing:
        raise ValueError(f"path_to_group lacks the group of {show_path(missing[0])}")
    return analyse_operations(minfo, groups)[0]


def analyse_operations(
    minfo: ModuleInfo, groups: Sequence[HiddenGroup], recurrence_scope: str = "diagonal"
) -> tuple[tuple[HiddenParamOpRelation, ...], tuple[Cone, ...], list[CompilationRecord]]:
    """Relations, the cone of every group, and what was found on the way.

    Raises
    ------
    NotSupportedError
        When a traced operand depends on both parameters and inputs or states, or a path to a
        hidden state mixes so many positions that its derivative would not fit.
    """
    groups = tuple(groups)
    found, records = _traceable(minfo, groups)
    driven = [{i for i, _, reached in found if g.index in reached} for g in groups]
    cones = tuple(
        find_cone(
            minfo,
            groups,
            g,
            [minfo.eqns[i].outvars[0] for i in sorted(driven[g.index])],
            check_scope(recurrence_scope),
        )
        for g in groups
    )
    traced = [cone for cone in cones if driven[cone.group]]
    records.extend(transition_records(minfo, groups, traced))
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
    records.extend(_mixed_tails(relations, groups))
    return relations, cones, records


def _mixed_tails(
    relations: Sequence[HiddenParamOpRelation], groups: Sequence[HiddenGroup]
) -> list[CompilationRecord]:
    return [
        tail_not_position_wise(
            relation, groups[g], found.offence, math.prod(found.result[k] for k in found.extra)
        )
        for relation in relations
        for g, found in relation.group_alignments.items()
        if found.mixed and found.extra and found.offence is not None
    ]


def find_hidden_param_op_relations_from_module(
    model: brainstate.nn.Module, *args: Any
) -> tuple[HiddenParamOpRelation, ...]:
    """The relations of ``extract_module_info(model, *args)``.

    Parameters
    ----------
    model, *args
        As in :func:`extract_module_info`.

    Returns
    -------
    tuple of HiddenParamOpRelation

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> x = jnp.ones((2, 3))
    >>> relations = braintrace.find_hidden_param_op_relations_from_module(cell, x)
    >>> [relation.primitive.name for relation in relations]
    ['etp_mm', 'etp_mm']
    """
    minfo = extract_module_info(model, *args)
    groups, _ = find_hidden_groups_from_minfo(minfo)
    return find_hidden_param_op_relations_from_minfo(minfo, groups)


#: How many numbers the factor ``f`` of a relation whose tail mixes positions may take at a step.
LARGEST_FACTOR = 2**27

Traceable = tuple[int, tuple[TrainableOperand, ...], frozenset[int]]
"""An ETP equation with parameters, its operands but ``x``, and the groups it drives."""


def _traceable(
    minfo: ModuleInfo, groups: tuple[HiddenGroup, ...]
) -> tuple[list[Traceable], list[CompilationRecord]]:
    """The ETP equations that become relations, and why the others do not.

    Those whose output nothing reads are left out: ``vmap`` over functions with states leaves copies
    of equations behind that run for nothing.
    """
    reached, far = near_reach(minfo, groups), far_reach(minfo, groups)
    needed = {*slice_to(minfo.eqns, minfo.jaxpr.outvars)}
    found: list[Traceable] = []
    records: list[CompilationRecord] = []
    for i in (i for i in etp_equations(minfo.eqns) if i in needed):
        eqn = minfo.eqns[i]
        operands = tuple(weight_operands(minfo, i))
        if not reached[i] or not any(o.leaves for o in operands):
            records.append(excluded(eqn, operands, reached[i], far.get(i, frozenset())))
            continue
        refuse_dynamic(minfo, eqn, operands)
        records.extend(operand_records(eqn, operands))
        found.append((i, operands, reached[i]))
    return found, records


def _alignment(eqn: JaxprEqn, group: HiddenGroup, cone: Sequence[JaxprEqn]) -> Alignment:
    """How the output of an operation lies in the positions of a group that it drives."""
    y = eqn.outvars[0]
    found = align(cone, y, group.hidden_outvars, group.ndim, y.aval.ndim)
    if found is None:
        raise CompilationError(
            f"no way was found from {eqn.primitive.name!r} at {versions.source_of(eqn)} to "
            f"{show_path(group.hidden_paths[0])}, although it depends on it; please report this"
        )
    size = group.num_state * math.prod(group.varshape[k] for k in found.extra) * y.aval.size
    if found.mixed and found.extra and size > LARGEST_FACTOR:
        raise NotSupportedError(
            f"between {eqn.primitive.name!r} at {versions.source_of(eqn)} and the hidden state "
            f"{show_path(group.hidden_paths[0])}, positions are mixed at "
            f"{described(found.offence)}: the derivative of every position in every output takes "
            f"{size} numbers at each step, more than {LARGEST_FACTOR}. Put the normalisation, "
            "pooling or dense product in front of the operation, or use an ETP operation for the "
            "product"
        )
    return found


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
        alignments[g] = _alignment(eqn, groups[g], eqns)
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
        source=versions.source_of(eqn),
        hidden_groups=tuple(groups[g] for g in alignments),
        module_info=minfo,
    )
