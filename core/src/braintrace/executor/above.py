# SPDX-License-Identifier: Apache-2.0
"""The ``D`` of values of small groups above, which are states below (``downstream='exact'``).

A step computes the derivatives that the equations of these states consist of, so that they are
read where they are and not found again from reverse sweeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ..base.versions import Atom, Var
from ..compiler.exact.record import ExactCredit, filter_path
from ..compiler.groups import HiddenGroup
from ..compiler.reach import Cone, Pattern
from .cascade import Cascade

Rows = Sequence[Sequence[Atom | None]]
Value = Callable[[Atom], jax.Array]
MEMBERS = "hidden_paths hidden_states hidden_invars hidden_outvars state_counts state_axes".split()


@dataclass(frozen=True, eq=False)
class Above:
    """The last states of a group, where they are values of small groups above it.

    Attributes
    ----------
    first, counts
        The group without them, and how many there are of each value's state.
    leaks, news, olds
        The variables that hold ``A``, ``N`` and ``M`` of a :class:`Cascade`: of each filter, in
        each filter [n, *examples, m], and in new and old values of the first [n, *V]; ``None``
        for zero.
    dtype
        That of ``D``.
    """

    first: HiddenGroup
    counts: tuple[int, ...]
    leaks: Rows
    news: Rows
    olds: Rows
    dtype: Any

    @classmethod
    def of(cls, exact: ExactCredit, group: HiddenGroup, cone: Cone) -> Above | None:
        """Those of a group; ``None`` where its last states are others, or it is not known how."""
        names = {filter_path(i): name for i, name in enumerate(exact.filters)}
        known = [names[path] for path in group.hidden_paths if path in names]
        below, moving = {key for key, _ in known}, cone.transition
        if len(below) != 1 or moving is None or moving.program or moving.mixed:
            return None
        (key,), first = below, len(group.hidden_paths) - len(known)
        if not isinstance(key, int) or exact.positions(key) != group.varshape:
            return None
        own, above = exact.groups[key], {m.path: m for m in exact.members_above(key)}
        if own.hidden_paths != group.hidden_paths[:first]:
            return None

        def rows(variables: Sequence[Var]) -> Rows:
            return [[exact.entries[name].get(var) for var in variables] for name in known]

        return cls(
            replace(group, **{name: getattr(group, name)[:first] for name in MEMBERS}),
            group.state_counts[first:],
            rows([above[path].old for _, path in known]),
            rows(own.hidden_outvars),
            rows(own.hidden_invars),
            jnp.result_type(*(var.aval.dtype for var in group.hidden_invars)),
        )

    @property
    def atoms(self) -> Iterator[Atom]:
        """All these variables."""
        rows = (*self.leaks, *self.news, *self.olds)
        return (atom for row in rows for atom in row if atom is not None)

    @property
    def follows(self) -> Pattern:
        """Which value follows which state [Q][H]."""
        counts = self.first.state_counts
        rows = ([atom is not None for atom in row] for row in self.news)
        pairs = (zip(row, counts, strict=True) for row in rows)
        wide = [tuple(known for known, n in row for _ in range(n)) for row in pairs]
        return tuple(row for row, n in zip(wide, self.counts, strict=True) for _ in range(n))

    @property
    def reads_old(self) -> bool:
        """Whether ``M`` is not zero."""
        return any(atom is not None for row in self.olds for atom in row)

    @property
    def examples(self) -> int:
        """How many examples have an ``A`` of their own."""
        return max(atom.aval.shape[1] for row in self.leaks for atom in row if atom is not None)

    def cascade(self, D: jax.Array, value: Value) -> Cascade:
        """The transition of all states, from that of the first ones."""

        def leak(atom: Atom | None, n: int, m: int) -> jax.Array:
            zeros = jnp.zeros((n, self.examples, m), self.dtype)
            return zeros if atom is None else value(atom).astype(self.dtype)

        def row(atoms: Sequence[Atom | None], n: int) -> jax.Array:
            pairs = zip(atoms, self.counts, strict=True)
            return jnp.concatenate([leak(atom, n, m) for atom, m in pairs], 2)

        rows = [row(*one) for one in zip(self.leaks, self.counts, strict=True)]
        last = jnp.moveaxis(jnp.concatenate(rows), 1, 2)
        last = last.reshape(*last.shape, *(1,) * (self.first.ndim - 1))
        old = self._of_first(self.olds, value) if self.reads_old else None
        return Cascade(
            D.astype(self.dtype), last, self._of_first(self.news, value), self.follows, old
        )

    def _of_first(self, rows: Rows, value: Value) -> jax.Array:
        """Entries [Q, H, *V]."""
        group = self.first
        sizes = [*zip(group.state_counts, group.state_axes, strict=True)]

        def entries(atom: Atom | None, n: int, count: int, axis: int) -> jax.Array:
            if atom is None:
                return jnp.zeros((n, count, *group.varshape), self.dtype)
            found, several = value(atom).astype(self.dtype), len(atom.aval.shape) > 1 + group.ndim
            return jnp.moveaxis(found, axis + (axis >= 0), 1) if several else found[:, None]

        def row(atoms: Sequence[Atom | None], n: int) -> jax.Array:
            pairs = zip(atoms, sizes, strict=True)
            return jnp.concatenate([entries(atom, n, *size) for atom, size in pairs], 1)

        return jnp.concatenate([row(*one) for one in zip(rows, self.counts, strict=True)])
