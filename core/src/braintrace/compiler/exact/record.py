# SPDX-License-Identifier: Apache-2.0
"""Small groups above others: which there are, and the states that their values become below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.precision import sum_dtype
from ...base.types import Path
from ...base.versions import Atom, Var
from ...jaxprs.credit import with_credit
from ...jaxprs.depends import Along, slice_to
from ...jaxprs.run import Slice, between
from ..groups import HiddenGroup
from ..module_info import CreditFilter, ModuleInfo
from ..reach import Reach

Key = int | Var
"""What is below: a group by its number, or an operation by its result."""


@dataclass(frozen=True, eq=False)
class Member:
    """One hidden state of a group."""

    group: HiddenGroup
    number: int

    @property
    def path(self) -> Path:
        return self.group.hidden_paths[self.number]

    @property
    def old(self) -> Var:
        return self.group.hidden_invars[self.number]

    @property
    def new(self) -> Var:
        return self.group.hidden_outvars[self.number]

    @property
    def _states(self) -> int | None:
        """The axis of its states, if it has one."""
        alone = self.new.aval.ndim == self.group.ndim
        return None if alone else self.group.state_axes[self.number] % self.new.aval.ndim

    def entries(self, value: Any, examples: int, lead: int = 0) -> Any:
        """A value [*lead, ..] as [*lead, examples, n]."""
        if self._states is not None:
            value = jnp.moveaxis(value, lead + self._states, -1)
        return value.reshape(*value.shape[:lead], examples, -1)

    def laid(self, entries: Any) -> Any:
        """The inverse of :meth:`entries`."""
        shape = self.new.aval.shape
        if self._states is None:
            return entries.reshape(shape)
        found = entries.reshape(*self.group.varshape, shape[self._states])
        return jnp.moveaxis(found, -1, self._states)

    def summed(self, value: Any) -> Any:
        """The sum over its states of a value [n, ..]."""
        return value if self._states is None else value.sum(1 + self._states)


def members_of(group: HiddenGroup) -> list[Member]:
    """The hidden states of a group."""
    return [Member(group, i) for i in range(len(group.hidden_paths))]


@dataclass(frozen=True, eq=False)
class ExactCredit:
    """Which small groups are above which groups of a step.

    Attributes
    ----------
    minfo, groups
        The step, and its hidden groups.
    above
        Of each group with small groups above it, by number, the numbers of these; likewise of each
        operation, by its result.
    by_example
        Whether the first axis is one of examples, which the step keeps apart.
    too_large
        How many values other groups above one have, by their first state.
    operations
        The operations that may be below a group.
    entries
        In the step with these states, by what is below and by path of what is above: derivatives of
        the new value above in old ones above [n, *examples, m], and in values below [n, *V], by
        variable of the step as it was.

    Examples
    --------
    >>> import braintrace as bt, jax.numpy as jnp
    >>> from brainstate.nn import Sequential
    >>> model, x = Sequential(bt.nn.GRUCell(3, 8), bt.nn.GRUCell(8, 2)), jnp.ones((4, 3))
    >>> learner = bt.compile(model, "d_rtrl", x, batch_size=4, downstream="exact")
    >>> learner.graph.exact.above, learner.graph.exact.by_example
    ({0: (1,)}, True)
    >>> [group.num_state for group in learner.graph.executed.hidden_groups]
    [3, 1]
    """

    minfo: ModuleInfo
    groups: tuple[HiddenGroup, ...]
    above: Mapping[Key, tuple[int, ...]]
    by_example: bool
    too_large: Mapping[Path, int]
    operations: Mapping[Var, Reach]
    entries: Mapping[tuple[Key, Path], Mapping[Var, Atom]] = field(default_factory=dict)

    @cached_property
    def small(self) -> dict[Path, Member]:
        """The hidden states of all small groups."""
        found = sorted({k for above in self.above.values() for k in above})
        return {m.path: m for k in found for m in members_of(self.groups[k])}

    def members_above(self, key: Key) -> list[Member]:
        """The hidden states of the small groups above a group or an operation."""
        return [m for k in self.above.get(key, ()) for m in members_of(self.groups[k])]

    def values_below(self, key: Key) -> dict[Var, Member | None]:
        """The new and old values of a group, with their state; or the result of an operation."""
        if not isinstance(key, int):
            return {key: None}
        return {v: m for m in members_of(self.groups[key]) for v in (m.new, m.old)}

    def positions(self, key: Key) -> tuple[int, ...]:
        """The shape of the positions of a group, or of the result of an operation."""
        return self.groups[key].varshape if isinstance(key, int) else tuple(key.aval.shape)

    def states(self, key: Key) -> int:
        """How many states a group has of its own."""
        return self.groups[key].num_state if isinstance(key, int) else 0

    def shown(self, *groups: int) -> tuple[Path, ...]:
        """The hidden states of groups; of filters, what they stand for."""
        own = (
            state.of if isinstance(state, CreditFilter) else path
            for k in groups
            for path, state in zip(
                self.groups[k].hidden_paths, self.groups[k].hidden_states, strict=True
            )
        )
        return tuple(dict.fromkeys(own))

    def costs(self) -> Iterator[tuple[tuple[Path, ...], tuple[Path, ...], int, int]]:
        """What is below what, how many states its traces get by that, and how many it has."""
        for key, above in self.above.items():
            below = self.shown(key) if isinstance(key, int) else self.operations[key].paths
            count = values_of(self.members_above(key), self.by_example)
            yield below, self.shown(*above), count, self.states(key)

    def examples(self, member: Member) -> int:
        """How many examples a state holds; 1 where they are not kept apart."""
        return member.new.aval.shape[0] if self.by_example else 1

    @cached_property
    def filters(self) -> dict[tuple[Key, Path], jax.ShapeDtypeStruct]:
        """The types of ``q`` [n, *V], by what is below and by path of what is above."""
        found = {}
        for key in self.above:
            for m in self.members_above(key):
                shape = (values_of([m], self.by_example), *self.positions(key))
                found[key, m.path] = jax.ShapeDtypeStruct(shape, sum_dtype(m.new.aval.dtype))
        return found

    @cached_property
    def ways(self) -> dict[tuple[Key, Path], Slice]:
        """The part of the step from what is below to each new value above."""
        return {(key, m.path): way_to(self, key, m) for key, m in self.pairs()}

    def pairs(self) -> Iterator[tuple[Key, Member]]:
        """What is below, with each state above it."""
        yield from ((key, m) for key in self.above for m in self.members_above(key))

    def total(self, member: Member, q: Any) -> Any:
        """``sum_p q[j, p]``, laid out as the state."""
        found = q.sum(tuple(range(2 if self.by_example else 1, q.ndim)))
        return member.laid(found.reshape(len(q), -1).T).astype(member.new.aval.dtype)

    def credited(self, values: Mapping[Path, Any]) -> dict[Path, Any]:
        """Values of small groups with the derivative that they have of what is below, too.

        ``values`` are those of the states of the step that ``exact_step`` gave, by path.
        """
        found = {path: jax.tree.leaves(values[path])[0] for path in self.small}
        for i, (_, path) in enumerate(self.filters):
            found[path] = found[path] + self.total(self.small[path], values[filter_path(i)])
        return {
            path: jax.tree.map(lambda leaf, of=of: with_credit(leaf, of), values[path])
            for path, of in found.items()
        }


def filter_path(number: int) -> Path:
    return "<exact>", str(number)


def values_of(members: Sequence[Member], by_example: bool) -> int:
    """How many values states have, of an example."""
    shapes = (m.new.aval.shape[by_example:] for m in members)
    return sum(map(math.prod, shapes))


def way_to(credit: ExactCredit, key: Key, member: Member) -> Slice:
    """The part of the step from what is below, and old values above, to a new value above."""
    info, above, below = credit.minfo, credit.members_above(key), credit.values_below(key)
    others = {v for g in credit.groups for v in g.hidden_outvars} - {m.new for m in above}
    ins, held = [*(m.old for m in above), *below], others - {*below}
    way = between(info.eqns, ins, [member.new], held, along=Along.DERIVATIVES)
    way = replace(way, eqns=tuple(way.eqns[i] for i in slice_to(way.eqns, way.outs)))
    read = {atom for eqn in way.eqns for atom in eqn.invars if versions.is_var(atom)}
    return replace(way, ins=tuple(v for v in way.ins if v in read))
