# SPDX-License-Identifier: Apache-2.0
"""Hidden groups: hidden states of one layer that recur together, position by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate

from .. import _jax
from .._jax import JaxprEqn, Var
from .._jaxpr import depends, differentiable
from .._primitive import is_etp_primitive
from ._diagnostics import Path
from ._module_info import DYNAMIC, ModuleInfo, StateKind, StateSlot, extract_module_info


@dataclass(frozen=True, eq=False)
class HiddenGroup:
    """Hidden states whose values depend on one another within one layer.

    Attributes
    ----------
    index
        Number of the group.
    hidden_paths, hidden_states, hidden_invars, hidden_outvars
        The members: paths, states, and the variables of their old and new values.
    varshape
        Shape ``[*V]`` of the positions, the batch axis included.
    state_counts
        How many states each member holds (more than one for a ``HiddenGroupState``).
    """

    index: int
    hidden_paths: tuple[Path, ...]
    hidden_states: tuple[brainstate.HiddenState, ...]
    hidden_invars: tuple[Var, ...]
    hidden_outvars: tuple[Var, ...]
    varshape: tuple[int, ...]
    state_counts: tuple[int, ...]

    @property
    def num_state(self) -> int:
        """Number ``S`` of states per position."""
        return sum(self.state_counts)

    @property
    def ndim(self) -> int:
        """Number of position axes."""
        return len(self.varshape)


def is_barrier(eqn: JaxprEqn) -> bool:
    """Whether hidden-to-hidden paths are cut at an equation."""
    return is_etp_primitive(eqn.primitive) and not eqn.primitive.spec.gradient_enabled


def near_paths(minfo: ModuleInfo) -> Callable[[int, JaxprEqn, int], bool]:
    """The rule by which a path stays *near* through an operand of an equation.

    It does through differentiable equations that are no ETP operation, and through a
    gradient-enabled one, unless it enters by a trainable operand that parameters lead to: that
    belongs to the relation of the operation.
    """

    def passes(index: int, eqn: JaxprEqn, operand: int) -> bool:
        if not differentiable(eqn) or is_barrier(eqn):
            return False
        if not is_etp_primitive(eqn.primitive):
            return True
        return operand == eqn.primitive.spec.x_invar_index or not has_parameters(minfo, eqn)

    return passes


def has_parameters(minfo: ModuleInfo, eqn: JaxprEqn) -> bool:
    """Whether parameters lead to a trainable operand of an ETP equation."""
    positions = eqn.primitive.spec.resolve_trainable_invars(eqn.params).values()
    atoms = [eqn.invars[k] for k in positions if k < len(eqn.invars)]
    behind = [minfo.origins.get(a, frozenset()) for a in atoms if _jax.is_var(a)]
    return any(marks - {DYNAMIC} for marks in behind)


def find_hidden_groups_from_minfo(
    minfo: ModuleInfo,
) -> tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]]:
    """The hidden groups of a traced model, and the group of each hidden state.

    Two states are in one group when the old value of one reaches the new value of the other
    without crossing an ETP operation, their positions have the same shape, and they belong to one
    layer: paths that first differ in an integer are different layers.
    """
    slots = minfo.slots_of(StateKind.HIDDEN)
    seeds = {minfo.invars_of(slot)[0]: frozenset({i}) for i, slot in enumerate(slots)}
    marks = depends(minfo.eqns, seeds, near_paths(minfo))
    leader = list(range(len(slots)))
    for j, target in enumerate(slots):
        for i in marks.get(minfo.outvars_of(target)[0], frozenset()):
            if _compatible(slots[i], target):
                a, b = sorted((leader[i], leader[j]))
                leader = [a if k == b else k for k in leader]
    groups = tuple(
        _group(minfo, index, [s for s, k in zip(slots, leader, strict=True) if k == first])
        for index, first in enumerate(sorted(set(leader)))
    )
    return groups, {path: group for group in groups for path in group.hidden_paths}


def find_hidden_groups_from_module(
    model: brainstate.nn.Module, *args: Any
) -> tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]]:
    """:func:`find_hidden_groups_from_minfo` of ``extract_module_info(model, *args)``."""
    return find_hidden_groups_from_minfo(extract_module_info(model, *args))


def _group(minfo: ModuleInfo, index: int, members: list[StateSlot]) -> HiddenGroup:
    states = tuple(slot.state for slot in members)
    return HiddenGroup(
        index=index,
        hidden_paths=tuple(slot.path for slot in members),
        hidden_states=states,  # type: ignore[arg-type]
        hidden_invars=tuple(minfo.invars_of(slot)[0] for slot in members),
        hidden_outvars=tuple(minfo.outvars_of(slot)[0] for slot in members),
        varshape=tuple(states[0].varshape),  # type: ignore[attr-defined]
        state_counts=tuple(state.num_state for state in states),  # type: ignore[attr-defined]
    )


def _compatible(a: StateSlot, b: StateSlot) -> bool:
    same_shape = tuple(a.state.varshape) == tuple(b.state.varshape)  # type: ignore[attr-defined]
    return same_shape and same_layer(a.path, b.path)


def same_layer(a: Path, b: Path) -> bool:
    """Whether two state paths belong to one layer: they do not first differ in an integer."""
    for x, y in zip(a, b, strict=False):
        if x != y:
            return not (isinstance(x, int) and isinstance(y, int))
    return True


def member_of(groups: tuple[HiddenGroup, ...]) -> dict[Var, int]:
    """Which group a new-value variable belongs to."""
    return {var: group.index for group in groups for var in group.hidden_outvars}
