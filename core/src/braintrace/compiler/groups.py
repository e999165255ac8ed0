# SPDX-License-Identifier: Apache-2.0
"""Hidden groups: hidden states of one layer that recur together, position by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.former import without_former_options
from ..base.types import Path
from ..base.versions import Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along
from ..jaxprs.positions.alignment import align
from ..jaxprs.run import Slice, between
from ..published import GroupViews
from .module_info import ModuleInfo, StateKind, StateSlot, is_barrier
from .tracing.extract import extract_module_info

LAST = -1


@dataclass(frozen=True, eq=False)
class HiddenGroup(GroupViews):
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
        How many states each member holds (more than one for a ``HiddenGroupState``, and for a
        delay line, whose steps are states of one position).
    state_axes
        The axis of each member along which its states lie: the last, or that of a delay line's
        steps.
    module_info
        The step that the group was found in.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> (group,), _ = braintrace.find_hidden_groups_from_module(cell, jnp.ones((2, 3)))
    >>> group.hidden_paths, group.varshape, group.num_state
    ((('h',),), (2, 4), 1)
    >>> free = [jnp.ones(var.aval.shape) for var in group.transition_jaxpr_constvars]
    >>> group.diagonal_jacobian([jnp.zeros((2, 4))], free).shape
    (2, 4, 1, 1)
    """

    index: int
    hidden_paths: tuple[Path, ...]
    hidden_states: tuple[brainstate.HiddenState, ...]
    hidden_invars: tuple[Var, ...]
    hidden_outvars: tuple[Var, ...]
    varshape: tuple[int, ...]
    state_counts: tuple[int, ...]
    module_info: ModuleInfo = field(repr=False)
    state_axes: tuple[int, ...] = ()

    @property
    def num_state(self) -> int:
        """Number ``S`` of states per position."""
        return sum(self.state_counts)

    @property
    def ndim(self) -> int:
        """Number of position axes."""
        return len(self.varshape)

    @cached_property
    def transition_slice(self) -> Slice:
        """The equations of the whole transition, ETP operations included.

        They are those that depend on an old value of the group, in whatever way, and lead to a new
        one without passing a hidden state of another group.
        """
        info = self.module_info
        others = frozenset(info.hidden_path_to_outvar.values()) - {*self.hidden_outvars}
        return between(info.eqns, self.hidden_invars, self.hidden_outvars, others)

    @cached_property
    def transition_jaxpr(self) -> Jaxpr:
        """The whole transition as a jaxpr from old to new values, ETP operations included.

        The rest of what it reads are its ``constvars``; JAX from 0.11 on has them as the leading
        inputs. Which paths through it are in ``D`` is a choice of the algorithm (its recurrence
        scope), not a property of this record.
        """
        return self.transition_slice.published()

    @property
    def transition_jaxpr_constvars(self) -> tuple[Var, ...]:
        """The constants of :attr:`transition_jaxpr`, as variables of the step."""
        return self.transition_slice.free

    def concat_hidden(self, values: Sequence[Any]) -> jax.Array:
        """One array [*V, S] of one value per member: [*V], or [*V, n] for a ``HiddenGroupState``.

        A delay line is of its own shape.

        Raises
        ------
        ValueError
            When the number of values or a shape is not that of the members.
        """
        self._check("member", values, self.hidden_outvars)
        pairs = zip(values, self.state_axes, self.state_counts, strict=True)
        parts = ((v if k == LAST else jnp.moveaxis(v, k, LAST), n) for v, k, n in pairs)
        return jnp.concatenate([jnp.reshape(v, (*self.varshape, n)) for v, n in parts], axis=-1)

    def split_hidden(self, array: Any) -> list[jax.Array]:
        """The inverse of :meth:`concat_hidden`: values of the members, in their own dtypes.

        Raises
        ------
        ValueError
            When ``array`` is not of shape [*V, S].
        """
        if jnp.shape(array) != (*self.varshape, self.num_state):
            raise ValueError(
                f"expected an array of shape {(*self.varshape, self.num_state)} for group "
                f"{self.index}, got {jnp.shape(array)}"
            )
        parts = jnp.split(jnp.asarray(array), [*accumulate(self.state_counts)][:-1], axis=-1)
        avals = [var.aval for var in self.hidden_outvars]
        return [
            (part if k == LAST else jnp.moveaxis(part, LAST, k))
            .reshape(aval.shape)
            .astype(aval.dtype)
            for part, k, aval in zip(parts, self.state_axes, avals, strict=True)
        ]

    def transition(self, old_values: Sequence[Any], free_values: Sequence[Any]) -> list[Any]:
        """New values of the members from their old ones.

        Parameters
        ----------
        old_values
            One array per member, as for :meth:`concat_hidden`.
        free_values
            One array per variable of :attr:`transition_jaxpr_constvars`.

        Raises
        ------
        ValueError
            When the number of values or a shape does not fit.
        """
        self._check("member", old_values, self.hidden_outvars)
        self._check("free variable", free_values, self.transition_slice.free)
        return self.transition_slice.run(*free_values, *old_values)

    def diagonal_jacobian(self, old_values: Sequence[Any], free_values: Sequence[Any]) -> jax.Array:
        """``D[p, i, j] = d new[p, i] / d old[p, j]`` [*V, S, S] of the scope ``'diagonal'``.

        It is the derivative along paths that cross no ETP operation. Where they mix positions, it
        is the true block diagonal.

        Parameters
        ----------
        old_values, free_values
            As for :meth:`transition`.

        Raises
        ------
        ValueError
            When the number of values or a shape does not fit.
        """
        old = self.concat_hidden(old_values)
        zeros, num_state = jnp.zeros_like(old), self.num_state
        _, pull = jax.vjp(self.without_operations(free_values), old)
        if not self.mixed_axes:  # a reverse sweep per state, from all positions
            rows = [pull(zeros.at[..., i].set(1))[0] for i in range(num_state)]
            return jnp.stack(rows, axis=-2)

        def row(k: jax.Array) -> jax.Array:  # a reverse sweep per position and state
            (moved,) = pull(zeros.reshape(-1).at[k].set(1).reshape(old.shape))
            return moved.reshape(-1, num_state)[k // num_state]

        return jax.lax.map(row, jnp.arange(old.size)).reshape(*old.shape, num_state)

    @cached_property
    def mixed_axes(self) -> tuple[int, ...]:
        """Axes along which positions are mixed by paths that cross no ETP operation."""
        eqns = [eqn for eqn in self.transition_slice.eqns if not is_barrier(eqn)]
        return mixing(self, eqns, self.hidden_invars, self.hidden_outvars)[0]

    def without_operations(self, free_values: Sequence[Any]) -> Callable[[jax.Array], jax.Array]:
        """New values [*V, S] from old ones, without derivatives through ETP operations."""
        self._check("free variable", free_values, self.transition_slice.free)

        def step(old: jax.Array) -> jax.Array:
            values = [*free_values, *self.split_hidden(old)]
            return self.concat_hidden(self.transition_slice.run(*values, cut=is_barrier))

        return step

    def state_axes_of(self, members: Sequence[Var]) -> dict[Var, int]:
        """The axes of states that are not the last, by the variables of all members in order."""
        return {v: k for v, k in zip(members, self.state_axes, strict=True) if k != LAST}

    def _check(self, what: str, values: Sequence[Any], variables: Sequence[Var]) -> None:
        if len(values) != len(variables):
            raise ValueError(
                f"group {self.index} takes one value per {what} ({len(variables)}), "
                f"got {len(values)}"
            )
        for k, (value, var) in enumerate(zip(values, variables, strict=True)):
            if jnp.shape(value) != var.aval.shape:
                raise ValueError(
                    f"the value of {what} {k} of group {self.index} has shape "
                    f"{jnp.shape(value)}; expected {var.aval.shape}"
                )


Groups = Sequence[HiddenGroup]


@without_former_options
def find_hidden_groups_from_minfo(
    minfo: ModuleInfo, *, across_layers: bool = False
) -> tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]]:
    """The hidden groups of a traced model, and the group of each hidden state.

    Two states are in one group when the old value of one reaches the new value of the other
    without crossing an ETP operation, their positions have the same shape, and they belong to one
    layer: paths that first differ in an integer are different layers.

    Parameters
    ----------
    minfo
        A traced model.
    across_layers
        Whether states of different layers are in one group, too, where one reaches the other
        position by position.

    Returns
    -------
    groups, path_to_group
        The groups by number, and the group of each hidden state by its path.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> groups, path_to_group = braintrace.find_hidden_groups_from_minfo(minfo)
    >>> groups[0].varshape, path_to_group[("h",)] is groups[0]
    ((2, 4), True)
    """
    slots = minfo.slots_of(StateKind.HIDDEN)
    seeds = {minfo.invars_of(slot)[0]: frozenset({i}) for i, slot in enumerate(slots)}
    marks = minfo.credit(seeds, minfo.near)
    filters = {minfo.outvars_of(s)[0]: i for i, s in enumerate(slots) if s.is_filter}
    if filters or across_layers:
        number = {minfo.outvars_of(slot)[0]: i for i, slot in enumerate(slots)}
        emits = {v: frozenset({k}) for v, k in number.items()}

        def past(own: dict[Var, int]) -> dict[Var, frozenset[int]]:
            """What leads to each variable past none of some new values between."""
            led = dict(seeds)

            def through(var: Var, found: frozenset[int]) -> frozenset[int]:
                led[var] = found
                return frozenset({own[var]}) if var in own else found

            minfo.credit(seeds, minfo.near, emits, through)
            return led

        taken = past(number) if filters else {}
        direct = past(filters)
        chosen = number if across_layers else filters
        marks |= {v: (taken if v in filters else direct).get(v, frozenset()) for v in chosen}
    leader = list(range(len(slots)))
    for j, target in enumerate(slots):
        for i in marks.get(minfo.outvars_of(target)[0], frozenset()):
            one_layer = _compatible(slots[i], target) and not _is_above(slots[i], target)
            if one_layer or (across_layers and _by_position(minfo, slots[i], target)):
                a, b = sorted((leader[i], leader[j]))
                leader = [a if k == b else k for k in leader]
    groups = []
    for index, first in enumerate(sorted(set(leader))):
        members = [slot for slot, k in zip(slots, leader, strict=True) if k == first]
        axes = (slot.steps_along for slot in members)
        group = HiddenGroup(
            index=index,
            hidden_paths=tuple(slot.path for slot in members),
            hidden_states=tuple(slot.state for slot in members),  # type: ignore[misc]
            hidden_invars=tuple(minfo.invars_of(slot)[0] for slot in members),
            hidden_outvars=tuple(minfo.outvars_of(slot)[0] for slot in members),
            varshape=members[0].varshape,
            state_counts=tuple(slot.num_state for slot in members),
            module_info=minfo,
            state_axes=tuple(LAST if axis is None else axis for axis in axes),
        )
        groups.append(group)
    return tuple(groups), {path: group for group in groups for path in group.hidden_paths}


@without_former_options
def find_hidden_groups_from_module(
    model: brainstate.nn.Module, *args: Any
) -> tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]]:
    """:func:`find_hidden_groups_from_minfo` of ``extract_module_info(model, *args)``.

    Parameters
    ----------
    model, *args
        As in :func:`extract_module_info`.

    Returns
    -------
    groups, path_to_group
        The groups by number, and the group of each hidden state by its path.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> groups, _ = braintrace.find_hidden_groups_from_module(cell, jnp.ones((2, 3)))
    >>> [group.hidden_paths for group in groups]
    [(('h',),)]
    """
    return find_hidden_groups_from_minfo(extract_module_info(model, *args))


def mixing(
    group: HiddenGroup, eqns: Sequence[JaxprEqn], olds: Sequence[Var], news: Sequence[Var]
) -> tuple[tuple[int, ...], JaxprEqn | None]:
    """Axes along which equations mix the positions of a group, and the first that does."""
    mixed: set[int] = set()
    offence = None
    lines = group.state_axes_of(olds) | group.state_axes_of(news)
    for old in olds:
        found = align(eqns, old, news, group.ndim, group.ndim, lines)
        if found is not None and not found.is_identity:
            mixed |= set(range(group.ndim)) - found.kept
            offence = offence or found.offence or eqns[-1]
    return tuple(sorted(mixed)), offence if mixed else None


def _compatible(a: Any, b: Any) -> bool:
    """Whether two states are of one layer, their paths not first differing in an integer.

    A delay line is of the layer that writes to it, wherever it stands.
    """
    if a.varshape != b.varshape:
        return False
    if a.steps_along is not None or b.steps_along is not None:
        return True
    pair = next((pair for pair in zip(a.path, b.path, strict=False) if pair[0] != pair[1]), ())
    return not pair or not all(isinstance(part, int) for part in pair)


def _is_above(a: StateSlot, b: StateSlot) -> bool:
    """Whether ``b`` may be a state above, which a filter ``a`` is in front of, or its filter."""
    return a.is_filter and a.steps_along is None and b.steps_along is None


def _by_position(minfo: ModuleInfo, a: StateSlot, b: StateSlot) -> bool:
    """Whether one state reaches the new value of another position by position."""
    if a.varshape != b.varshape or a.num_state != 1 or b.num_state != 1:
        return False
    starts, (end,) = [*minfo.invars_of(a), *minfo.outvars_of(a)], minfo.outvars_of(b)
    ndim = len(a.varshape)
    for start in starts:
        eqns = between(minfo.eqns, [start], [end], follows=minfo.near, along=Along.DERIVATIVES).eqns
        found = align(eqns, start, [end], ndim, ndim) if eqns else None
        if found is not None and not found.is_identity:
            return False
    return True


def member_of(groups: Groups) -> dict[Var, int]:
    """Which group a new-value variable belongs to."""
    return {var: group.index for group in groups for var in group.hidden_outvars}


def groups_of_new(groups: Groups) -> dict[Var, frozenset[int]]:
    """The same as marks for :func:`depends`."""
    return {var: frozenset({group}) for var, group in member_of(groups).items()}
