# SPDX-License-Identifier: Apache-2.0
"""Operands of ETP operations, and the parameters behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..base import versions
from ..base.errors import CompilationError, NotSupportedError
from ..base.types import Path
from ..base.versions import Atom, JaxprEqn
from ..jaxprs.depends import Along, slice_to
from .module_info import ModuleInfo
from .program import DYNAMIC

Leaf = tuple[Path, int]
"""A parameter's path and the index of one of its leaves."""


@dataclass(frozen=True, eq=False)
class TrainableOperand:
    """An operand of an ETP equation but ``x``, and the parameter leaves it is made from.

    ``leaves`` are those that it has a derivative of; ``held`` are the other ones, which are behind
    ``stop_gradient`` or of integers. ``chain`` holds the indices of the parameter-only equations
    that lead from all of them to it.
    """

    key: str
    position: int
    atom: Atom
    leaves: tuple[Leaf, ...]
    chain: tuple[int, ...]
    held: tuple[Leaf, ...] = ()


def weight_operands(minfo: ModuleInfo, eqn_index: int) -> list[TrainableOperand]:
    """Every operand but ``x``, with the parameter leaves behind the trainable ones."""
    eqn = minfo.eqns[eqn_index]
    spec = eqn.primitive.spec
    keys = {position: key for key, position in spec.resolve_trainable_invars(eqn.params).items()}
    missing = [position for position in keys if position >= len(eqn.invars)]
    if missing:
        raise CompilationError(
            f"the primitive {spec.name!r} names operand {missing[0]} ({keys[missing[0]]!r}) as "
            f"trainable, but at {versions.source_of(eqn)} it is bound with {len(eqn.invars)} "
            "operands; give it a trainable_invars_fn that says where its trainable operands stand"
        )
    return [
        _operand(minfo, keys.get(position, ""), position, atom)
        for position, atom in enumerate(eqn.invars)
        if position != spec.x_invar_index
    ]


def _operand(minfo: ModuleInfo, key: str, position: int, atom: Atom) -> TrainableOperand:
    behind, trained = minfo.behind(atom), minfo.trained_by(atom)
    known: Iterable[Leaf] = behind - {DYNAMIC} if key else ()
    if len(behind) > 1:
        known = [leaf for leaf in minfo.parameter_leaves if leaf in known]
    leaves = tuple(leaf for leaf in known if leaf in trained)
    held = tuple(leaf for leaf in known if leaf not in trained)
    computed = versions.is_var(atom) and atom in minfo.producers and DYNAMIC not in behind
    chain = (
        slice_to(minfo.eqns[: minfo.producers[atom] + 1], [atom], along=Along.EQUATIONS)
        if computed
        else ()
    )
    return TrainableOperand(key, position, atom, leaves, tuple(chain), held)


def refuse_dynamic(minfo: ModuleInfo, eqn: JaxprEqn, operands: Sequence[TrainableOperand]) -> None:
    for operand in operands:
        if DYNAMIC in minfo.behind(operand.atom):
            name = f"operand {operand.position}"
            name = f"operand {operand.key!r} ({name})" if operand.key else name
            raise NotSupportedError(
                f"{name} of {eqn.primitive.name!r} at {versions.source_of(eqn)} depends on "
                "inputs or states of the step; everything but x must be made of parameters and "
                "constants, because its trace is kept over time. Apply a factor or a bias that "
                "changes from step to step to the input or to the output of the operation"
            )
