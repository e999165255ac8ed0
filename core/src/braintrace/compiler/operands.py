# SPDX-License-Identifier: Apache-2.0
"""ETP equations as records: relations, and operands with the parameters behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..base import versions
from ..base.errors import CompilationError, NotSupportedError
from ..base.types import Path
from ..base.versions import Atom, JaxprEqn
from .module_info import ModuleInfo
from .program import DYNAMIC

Leaf = tuple[Path, int]
"""A parameter's path and the index of one of its leaves."""


@dataclass(frozen=True, eq=False)
class TrainableOperand:
    """A trainable operand of an ETP equation and the parameter leaves it is made from.

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
    operands = []
    for position, atom in enumerate(eqn.invars):
        if position == spec.x_invar_index:
            continue
        behind = minfo.behind(atom)
        made_of = [leaf for leaf in minfo.parameter_leaves if leaf in behind]
        known = made_of if position in keys else []
        trained = minfo.trained_by(atom) if known else frozenset()
        leaves = tuple(leaf for leaf in known if leaf in trained)
        held = tuple(leaf for leaf in known if leaf not in trained)
        chain = () if DYNAMIC in behind else _equations_behind(minfo, atom)
        operands.append(
            TrainableOperand(keys.get(position, ""), position, atom, leaves, chain, held)
        )
    return operands


def _equations_behind(minfo: ModuleInfo, atom: Atom) -> tuple[int, ...]:
    """Indices of the equations that lead to an operand."""
    found: set[int] = set()
    waiting = [atom]
    while waiting:
        atom = waiting.pop()
        i = minfo.producers.get(atom) if versions.is_var(atom) else None
        if i is not None and i not in found:
            found.add(i)
            waiting.extend(minfo.eqns[i].invars)
    return tuple(sorted(found))


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
