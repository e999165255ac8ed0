# SPDX-License-Identifier: Apache-2.0
"""Relations: which ETP operation, with which parameters, drives which hidden group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import brainstate

from ..base import versions
from ..base.errors import CompilationError, NotSupportedError
from ..base.types import Path, show_path
from ..base.versions import JaxprEqn
from ..jaxprs.positions.alignment import Alignment, align
from .cones import Cone, find_cones
from .findings.record import described
from .groups import Groups, HiddenGroup, find_hidden_groups_from_minfo
from .module_info import ModuleInfo
from .operands import refuse_dynamic
from .reach import Reach, find_reach
from .relation import HiddenParamOpRelation
from .tracing.extract import extract_module_info


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
    return analyse_operations(minfo, groups).relations


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


class Analysis(NamedTuple):
    """What the three passes over the ETP operations of a step found."""

    reach: tuple[Reach, ...]
    cones: tuple[Cone, ...]
    relations: tuple[HiddenParamOpRelation, ...]


def analyse_operations(minfo: ModuleInfo, groups: Groups, scope: str = "diagonal") -> Analysis:
    """Reach, cones and relations, one after the other.

    A ``NotSupportedError`` is raised when a traced operand depends on inputs or states, or a path
    to a hidden state mixes so many positions that its derivative would not fit.
    """
    reach = find_reach(minfo, groups)
    cones = find_cones(groups, reach, scope)
    traced = (r for r in reach if r.traced)
    relations = (_relation(groups, cones, k, r) for k, r in enumerate(traced))
    return Analysis(reach, cones, tuple(relations))


def _relation(
    groups: Groups, cones: Sequence[Cone], index: int, reach: Reach
) -> HiddenParamOpRelation:
    minfo = groups[0].module_info
    refuse_dynamic(minfo, reach.eqn, reach.operands)
    eqn, x_index = reach.eqn, reach.eqn.primitive.spec.x_invar_index
    driven = [groups[g] for g in sorted(reach.near)]
    return HiddenParamOpRelation(
        index=index,
        eqn_index=reach.eqn_index,
        primitive=eqn.primitive,
        eqn_params=dict(eqn.params),
        x_var=None if x_index is None else eqn.invars[x_index],
        y_var=eqn.outvars[0],
        operands=tuple(eqn.invars),
        trainables=tuple(o for o in reach.operands if o.leaves),
        constants=tuple(o for o in reach.operands if not o.leaves),
        group_alignments={
            g.index: _alignment(eqn, g, [minfo.eqns[i] for i in cones[g.index].eqns])
            for g in driven
        },
        path_classification={
            path: "partial" if var in reach.crossing else "all_direct"
            for g in driven
            for path, var in zip(g.hidden_paths, g.hidden_outvars, strict=True)
        },
        source=versions.source_of(eqn),
        hidden_groups=tuple(driven),
        module_info=minfo,
    )


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
