# SPDX-License-Identifier: Apache-2.0
"""One step as a flat program: the states among its inputs and outputs, and what depends on what."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..base import versions
from ..base.types import Path, State
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along, depends

DYNAMIC = "dynamic"

Marks = frozenset[Any]


class StateKind(enum.Enum):
    """What the compiler does with a state."""

    HIDDEN = "hidden"
    PARAM = "param"
    OTHER = "other"


@dataclass(frozen=True, eq=False)
class StateSlot:
    """Where the leaves of one state stand among the state leaves of the program.

    ``leaves`` counts from the first state leaf; the tree structure belongs to the state's value.
    """

    path: Path
    state: State
    kind: StateKind
    treedef: Any
    leaves: range


@dataclass(frozen=True, eq=False)
class Program:
    """A flat closed jaxpr.

    Its inputs are ``num_args`` leaves of arguments, then the leaves of the states in the order of
    their ``slots``; its outputs are ``num_out`` leaves of the result, then those of the states.
    """

    jaxpr: Jaxpr
    slots: tuple[StateSlot, ...]
    num_args: int
    num_out: int

    @property
    def eqns(self) -> Sequence[JaxprEqn]:
        """The equations of the step."""
        return self.jaxpr.eqns

    def slots_of(self, kind: StateKind) -> tuple[StateSlot, ...]:
        """The states of one kind."""
        return tuple(slot for slot in self.slots if slot.kind is kind)

    def invars_of(self, slot: StateSlot) -> tuple[Var, ...]:
        """Variables of a state's old leaves."""
        return tuple(self.jaxpr.invars[self.num_args + i] for i in slot.leaves)

    def outvars_of(self, slot: StateSlot) -> tuple[Atom, ...]:
        """Variables (or literals) of a state's new leaves."""
        return tuple(self.jaxpr.outvars[self.num_out + i] for i in slot.leaves)

    @cached_property
    def parameter_leaves(self) -> dict[tuple[Path, int], Var]:
        """Every parameter leaf ``(path, k)`` in order, with its variable."""
        slots = self.slots_of(StateKind.PARAM)
        return {(s.path, k): var for s in slots for k, var in enumerate(self.invars_of(s))}

    @cached_property
    def producers(self) -> dict[Var, int]:
        """Index of the equation that computes each variable."""
        return {var: i for i, eqn in enumerate(self.eqns) for var in eqn.outvars}

    def producer(self, atom: Atom) -> JaxprEqn | None:
        """The equation that computes an operand; ``None`` for an input, constant or literal."""
        i = self.producers.get(atom) if versions.is_var(atom) else None
        return None if i is None else self.eqns[i]

    def behind(self, atom: Atom) -> Marks:
        """The parameter leaves ``(path, k)`` that lead to an operand, and ``DYNAMIC``.

        ``DYNAMIC`` stands for everything that is neither a parameter nor a constant.
        """
        return self._origins.get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    def trained_by(self, atom: Atom) -> Marks:
        """The parameter leaves ``(path, k)`` that an operand has a derivative of."""
        return self._trained.get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    @cached_property
    def _origins(self) -> dict[Var, Marks]:
        moving = {var: frozenset({DYNAMIC}) for var in self.jaxpr.invars}
        return depends(self.eqns, moving | self._marked)

    @cached_property
    def _trained(self) -> dict[Var, Marks]:
        return depends(self.eqns, self._marked, along=Along.DERIVATIVES)

    @property
    def _marked(self) -> dict[Var, Marks]:
        return {var: frozenset({leaf}) for leaf, var in self.parameter_leaves.items()}
