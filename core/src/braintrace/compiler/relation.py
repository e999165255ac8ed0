# SPDX-License-Identifier: Apache-2.0
"""The record of a relation: an ETP operation, its parameters, and the groups that it drives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import brainstate
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path
from ..base.versions import Atom, Jaxpr, Var
from ..jaxprs.depends import Along
from ..jaxprs.positions.alignment import Alignment
from ..jaxprs.slices import Slice, between
from ..ops.primitive import ETPPrimitive
from ..ops.spec import ETPPrimitiveSpec
from .groups import HiddenGroup
from .module_info import ModuleInfo
from .near import near_paths
from .operands import TrainableOperand


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
    hidden_groups
        The driven groups, in the order of ``group_alignments``.
    module_info
        The step that the relation was found in.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
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
    def trainable_vars(self) -> dict[str, Atom]:
        """The operand of each trainable key."""
        return {t.key: t.atom for t in self.trainables}

    @property
    def trainable_paths(self) -> dict[str, Path]:
        """Path of the parameter behind each trainable key.

        An operand may be computed from several leaves, of one parameter or of several; this and
        the next two properties name the first, ``trainables`` has them all.
        """
        return {t.key: t.leaves[0][0] for t in self.trainables}

    @property
    def trainable_leaf_indices(self) -> dict[str, int]:
        """Which leaf of its parameter's value (in the order of ``jax.tree``) each key is."""
        return {t.key: t.leaves[0][1] for t in self.trainables}

    @property
    def trainable_param_states(self) -> dict[str, brainstate.State[Any]]:
        """The ``ParamState`` behind each trainable key."""
        states = self.module_info.compiled_model_states
        return {key: states[path] for key, path in self.trainable_paths.items()}

    @property
    def trainable_processing_chains(self) -> dict[str, tuple[versions.Primitive, ...]]:
        """The primitives between the parameter and the operand of each trainable key, in order."""
        eqns = self.module_info.eqns
        return {t.key: tuple(eqns[i].primitive for i in t.chain) for t in self.trainables}

    @cached_property
    def tail_slices(self) -> tuple[Slice, ...]:
        """Per driven group, the equations from ``y`` to its new values.

        They lie on paths that carry a derivative, cross no ETP operation and pass no hidden state
        of another group; what they read besides, the group's old values included, is free.
        """
        info, near = self.module_info, near_paths(self.module_info)
        states = frozenset(info.hidden_path_to_outvar.values())
        return tuple(
            between(
                info.eqns,
                [self.y_var],
                group.hidden_outvars,
                states.difference(group.hidden_outvars),
                near,
                Along.DERIVATIVES,
            )
            for group in self.hidden_groups
        )

    @cached_property
    def y_to_hidden_group_jaxprs(self) -> tuple[Jaxpr, ...]:
        """Per driven group, the tail as a jaxpr ``[*free, y] -> new values``."""
        return tuple(tail.jaxpr() for tail in self.tail_slices)

    @property
    def y_to_hidden_group_constvars(self) -> tuple[tuple[Var, ...], ...]:
        """Per driven group, the variables of the step behind the inputs ``free`` of its tail."""
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
