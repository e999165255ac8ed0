# SPDX-License-Identifier: Apache-2.0
"""ETP equations as records: relations, and operands with the parameters behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _jax
from .._errors import CompilationError, NotSupportedError
from .._jax import Atom, JaxprEqn, Var
from .._jaxpr import slice_to
from .._positions import Alignment
from .._primitive import ETPPrimitive, ETPPrimitiveSpec
from ._diagnostics import Path
from ._module_info import DYNAMIC, ModuleInfo, StateKind

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


def weight_operands(minfo: ModuleInfo, eqn_index: int) -> list[TrainableOperand]:
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


def refuse_dynamic(minfo: ModuleInfo, eqn: JaxprEqn, operands: Sequence[TrainableOperand]) -> None:
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
