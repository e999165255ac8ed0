# SPDX-License-Identifier: Apache-2.0
"""Relations: which ETP operation, with which parameters, drives which hidden group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import brainstate
import jax.numpy as jnp

from ..base import versions
from ..base.errors import CompilationError, NotSupportedError
from ..base.types import Path, show_path
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along
from ..jaxprs.positions.alignment import Alignment, align
from ..jaxprs.run import Slice, between
from ..ops.primitive import ETPPrimitive
from ..ops.spec import ETPPrimitiveSpec
from ..published import PathClassification, RelationViews
from .findings.record import described
from .groups import Groups, HiddenGroup, find_hidden_groups_from_minfo
from .module_info import DYNAMIC, ModuleInfo
from .reach import Cone, Reach, TrainableOperand, find_cones, find_reach
from .tracing.extract import extract_module_info


@dataclass(frozen=True, eq=False)
class HiddenParamOpRelation(RelationViews):
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
        Per driven hidden state: ``'all_direct'``, or ``'mixed'`` when other paths to it cross a
        further ETP operation (their gradient is that of the current step).
    source
        The user's ``file:line (function)``.
    hidden_groups
        The driven groups, in the order of ``group_alignments``.
    module_info
        The step that the relation was found in.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> update, candidate = braintrace.find_hidden_param_op_relations_from_module(
    ...     cell, jnp.ones((2, 3))
    ... )
    >>> update.primitive.name, update.weight_path, update.connected_hidden_paths
    ('etp_mm', ('Wz', 'weight'), (('h',),))
    >>> update.trainable_leaf_indices
    {'weight': 1, 'bias': 0}
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
    hidden_groups: tuple[HiddenGroup, ...]
    module_info: ModuleInfo = field(repr=False)

    @property
    def spec(self) -> ETPPrimitiveSpec:
        """The specification of the primitive."""
        return self.primitive.spec

    @property
    def parameter_paths(self) -> tuple[Path, ...]:
        """Paths of all parameters behind the trainable operands, each once."""
        return tuple(dict.fromkeys(leaf[0] for t in self.trainables for leaf in t.leaves))

    @property
    def weight_path(self) -> Path:
        """Path of the first parameter."""
        return self.parameter_paths[0]

    path = weight_path

    @property
    def connected_hidden_paths(self) -> tuple[Path, ...]:
        """Paths of the hidden states of the driven groups."""
        return tuple(path for group in self.hidden_groups for path in group.hidden_paths)

    @property
    def trainable_paths(self) -> dict[str, Path]:
        """Path of the parameter behind each trainable key.

        An operand may be computed from several leaves, of one parameter or of several; this and
        the next two properties name the first, ``trainables`` has them all.
        """
        return {t.key: t.leaves[0][0] for t in self.trainables}

    @cached_property
    def tail_slices(self) -> tuple[Slice, ...]:
        """Per driven group, the equations from ``y`` to its new values.

        They lie on paths that carry a derivative, cross no ETP operation and pass no hidden state
        of another group; what they read besides, the group's old values included, is free.
        """
        info = self.module_info
        states = frozenset(info.hidden_path_to_outvar.values())
        tail = partial(between, info.eqns, [self.y_var], follows=info.near, along=Along.DERIVATIVES)
        news = [group.hidden_outvars for group in self.hidden_groups]
        return tuple(tail(own, states.difference(own)) for own in news)

    @cached_property
    def y_to_hidden_group_jaxprs(self) -> tuple[Jaxpr, ...]:
        """Per driven group, the tail as a jaxpr from ``y`` to new values.

        The rest of what it reads are its ``constvars``; JAX from 0.11 on has them as the leading
        inputs.
        """
        return tuple(tail.published() for tail in self.tail_slices)

    @property
    def y_to_hidden_group_constvars(self) -> tuple[tuple[Var, ...], ...]:
        """Per driven group, the constants of its tail, as variables of the step."""
        return tuple(tail.free for tail in self.tail_slices)

    def y_to_hidden_groups(
        self, y: Any, free_values: Mapping[Var, Any], concat_hidden_vals: bool = True
    ) -> list[Any]:
        """New values of the driven groups as a function of ``y``.

        Parameters
        ----------
        y
            The output of the operation.
        free_values
            Values of the variables in :attr:`y_to_hidden_group_constvars`.
        concat_hidden_vals
            Whether the values of a group are one array [*V, S] or a list, one per member.

        Raises
        ------
        ValueError
            When a value is missing or ``y`` has another shape.
        """
        if jnp.shape(y) != self.y_var.aval.shape:
            raise ValueError(
                f"y of {self.primitive.name!r} has shape {self.y_var.aval.shape}, got "
                f"{jnp.shape(y)}"
            )
        missing = {v for tail in self.tail_slices for v in tail.free if v not in free_values}
        if missing:
            raise ValueError(f"free_values lacks {len(missing)} of the tail's free variables")
        found: list[Any] = []
        for group, tail in zip(self.hidden_groups, self.tail_slices, strict=True):
            values = tail.run(*(free_values[v] for v in tail.free), y)
            found.append(group.concat_hidden(values) if concat_hidden_vals else values)
        return found


Relations = Sequence[HiddenParamOpRelation]


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
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
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
    return analyse_operations(minfo, groups)[-1]


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
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
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


def analyse_operations(
    minfo: ModuleInfo, groups: Groups, scope: str = "diagonal"
) -> tuple[tuple[Reach, ...], tuple[Cone, ...], tuple[HiddenParamOpRelation, ...]]:
    """Reach, cones and relations, one after the other."""
    reach = find_reach(minfo, groups)
    cones = find_cones(groups, reach, scope)
    traced = (r for r in reach if r.traced)
    relations = (_relation(groups, cones, k, r) for k, r in enumerate(traced))
    return reach, cones, tuple(relations)


def _relation(
    groups: Groups, cones: Sequence[Cone], index: int, reach: Reach
) -> HiddenParamOpRelation:
    minfo = groups[0].module_info
    eqn, x_index = reach.eqn, reach.eqn.primitive.spec.x_invar_index
    for operand in reach.operands:
        if DYNAMIC in minfo.behind(operand.atom):
            name = f"operand {operand.position}"
            name = f"operand {operand.key!r} ({name})" if operand.key else name
            raise NotSupportedError(
                f"{name} of {eqn.primitive.name!r} at {versions.source_of(eqn)} depends on "
                "inputs or states of the step; everything but x must be made of parameters and "
                "constants, because its trace is kept over time, or, entry by entry, of one "
                "parameter and what moves (a mask, an index in front). Apply a factor or a bias "
                "that changes from step to step to the input or to the output of the operation"
            )
    driven = [groups[g] for g in sorted(reach.near)]
    ways = {False: PathClassification.ALL_DIRECT, True: PathClassification.MIXED}
    states = (pair for g in driven for pair in zip(g.hidden_paths, g.hidden_outvars, strict=True))
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
        group_alignments={g.index: _alignment(eqn, g, cones[g.index]) for g in driven},
        path_classification={p: ways[v in reach.crossing] for p, v in states},
        source=versions.source_of(eqn),
        hidden_groups=tuple(driven),
        module_info=minfo,
    )


def _alignment(eqn: JaxprEqn, group: HiddenGroup, cone: Cone) -> Alignment:
    """How the output of an operation lies in the positions of a group that it drives."""
    y, eqns = eqn.outvars[0], [group.module_info.eqns[i] for i in cone.eqns]
    lines = group.state_axes_of(group.hidden_outvars)
    found = align(eqns, y, group.hidden_outvars, group.ndim, y.aval.ndim, lines)
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
