# SPDX-License-Identifier: Apache-2.0
"""Matrices between many states that are zero but for a few bands, as those of a delay line are.

The transition of a line of ``n`` steps is a shift: ``n`` entries of ``n * n``. A ring that is
written at a counter adds a column, and what reads it at one, a row. Kept by their bands, such
matrices cost as much as their entries, and programs are no longer for a longer line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

#: A matrix of more bands than that, or with fewer zeros than other entries, is kept whole.
MOST_BANDS = 24

Pattern = tuple[tuple[bool, ...], ...]


class Band(NamedTuple):
    """Entries of a diagonal (``down`` and ``right`` are one), a column or a row, from the first."""

    row: int
    column: int
    length: int
    down: int
    right: int

    @property
    def entries(self) -> list[tuple[int, int]]:
        """Rows and columns."""
        return [
            (self.row + k * self.down, self.column + k * self.right) for k in range(self.length)
        ]

    @property
    def rows(self) -> slice:
        """The rows that it has entries in."""
        return slice(self.row, self.row + (self.length - 1) * self.down + 1)

    @property
    def columns(self) -> slice:
        """The columns that it has entries in."""
        return slice(self.column, self.column + (self.length - 1) * self.right + 1)

    @property
    def is_row(self) -> bool:
        """Whether it has several entries in one row."""
        return not self.down

    @property
    def turned(self) -> Band:
        """Of the transposed matrix."""
        return Band(self.column, self.row, self.length, self.right, self.down)


def bands_of(pattern: Pattern, members: tuple[int, ...] = ()) -> tuple[Band, ...] | None:
    """The bands that cover the entries of a matrix, each entry once; ``None``: keep it whole.

    States may belong to several members, so many to each. A band is then of one and one other.
    """
    return _bands_of(tuple(map(tuple, pattern)), members or (len(pattern),))


@lru_cache
def _bands_of(pattern: Pattern, members: tuple[int, ...]) -> tuple[Band, ...] | None:
    states = len(pattern)
    known = np.array(pattern, bool).reshape(states, -1)
    if 2 * known.sum() > states**2:
        return None
    member = np.repeat(np.arange(len(members)), members)
    place = np.arange(states) + member  # with an empty row and column between two members
    left = np.zeros((states + len(members), states + len(members)), bool)
    left[np.ix_(place, place)] = known
    found: list[Band] = []
    while left.any():
        if len(found) == MOST_BANDS:
            return None
        runs = _longest(left, 1), _longest(left, 0), _longest(left.T, 0).turned
        run = max(runs, key=lambda run: run.length)
        left[tuple(zip(*run.entries, strict=True))] = False
        row, column = (int(np.flatnonzero(place == k)[0]) for k in run[:2])
        found.append(run._replace(row=row, column=column))
    return tuple(found)


def _longest(left: np.ndarray, right: int) -> Band:
    """The longest run of entries downward, or along a diagonal."""
    states, best = len(left), Band(0, 0, 0, 1, right)
    length = np.zeros(states + 1, int)
    for i in reversed(range(states)):
        length[:-1] = left[i] * (1 + length[right : right + states])
        if (n := int(length.max())) >= max(1, best.length):
            best = Band(i, int(length.argmax()), n, 1, right)
    return best if best.length > 1 else best._replace(right=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Bands:
    """A matrix [S, S, ..] for each position and so on, by its bands.

    Attributes
    ----------
    values
        The entries of each band [n, ..].
    bands, num_state
        Where they stand, and ``S``.
    pulled
        The transposed matrix as a function of a vector, where that is known.
    """

    values: tuple[Any, ...]
    bands: tuple[Band, ...] = field(metadata={"static": True})
    num_state: int = field(metadata={"static": True})
    pulled: Any = None

    @property
    def by_entries(self) -> Bands:
        """Without ``pulled``."""
        return replace(self, pulled=None)

    @property
    def turned(self) -> Bands:
        """The transposed matrix."""
        return Bands(self.values, tuple(band.turned for band in self.bands), self.num_state)

    def times(self, vector: jax.Array) -> jax.Array:
        """The matrix times a vector [S, ..]."""
        total = None
        for band, values in zip(self.bands, self.values, strict=True):
            found = values * vector[band.columns]
            found = found.sum(0, keepdims=True) if band.is_row else found
            found = self._placed(found, band.rows)
            total = found if total is None else total + found
        return jnp.zeros_like(vector) if total is None else total

    def by_row(self) -> tuple[list[Any], list[jax.Array]]:
        """For each row, columns [S] and entries [S, ..] of the bands with one entry in a row.

        A row without an entry has zero.
        """
        columns, entries = [], []
        for band, values in zip(self.bands, self.values, strict=True):
            if not band.is_row:
                own = np.zeros(self.num_state, int)
                own[band.rows] = band.column + band.right * np.arange(band.length)
                columns.append(jnp.asarray(own))
                entries.append(self._placed(values, band.rows))
        return columns, entries

    def _placed(self, part: jax.Array, where: slice) -> jax.Array:
        """An array [n, ..] among zeros [S, ..]."""
        around = (where.start, self.num_state - where.stop)
        return jnp.pad(part, (around, *((0, 0),) * (part.ndim - 1)))

    def among(self, states: Sequence[int], lead: int = 0) -> Bands | jax.Array:
        """The entries between some states, in order; whole where these have few zeros."""
        number = {state: k for k, state in enumerate(states)}
        source = {
            (number[i], number[j]): (b, k)
            for b, band in enumerate(self.bands)
            for k, (i, j) in enumerate(band.entries)
            if i in number and j in number
        }
        count = range(len(states))
        bands = bands_of(tuple(tuple((i, j) in source for j in count) for i in count))
        if not bands:
            like = self.values[0]
            shape = *like.shape[:lead], len(states), len(states), *like.shape[lead + 1 :]
            whole = jnp.zeros(shape, like.dtype)
            before = (slice(None),) * lead
            for b, values in enumerate(self.values):
                own = [(k, *entry) for entry, (n, k) in source.items() if n == b]
                if own:
                    ks, rows, columns = np.array(own).T
                    whole = whole.at[(*before, rows, columns)].set(values[(*before, ks)])
            return whole

        def taken(band: Band) -> jax.Array:
            wanted = [source[entry] for entry in band.entries]
            runs = groupby(enumerate(wanted), lambda one: (one[1][0], one[1][1] - one[0]))
            parts = []
            for (b, _), run in runs:
                ks = [k for _, (_, k) in run]
                cut = jax.lax.slice_in_dim(self.values[b], ks[0], ks[-1] + 1, axis=lead)
                parts.append(cut)
            return parts[0] if len(parts) == 1 else jnp.concatenate(parts, lead)

        return Bands(tuple(map(taken, bands)), bands, len(states))


class Term(NamedTuple):
    """A run of products of entries of two matrices, which are added to entries of a third.

    Each of the three: the number of a band, its first entry of the run, and whether others follow.
    """

    out: tuple[int, int, int]
    left: tuple[int, int, int]
    right: tuple[int, int, int]
    length: int


@lru_cache
def product_terms(
    left: tuple[Band, ...], right: tuple[Band, ...], out: tuple[Band, ...]
) -> tuple[Term, ...]:
    """What the product of two matrices by their bands consists of."""
    place = {entry: (n, k) for n, band in enumerate(out) for k, entry in enumerate(band.entries)}
    found: list[Term] = []
    for a, first in enumerate(left):
        for b, second in enumerate(right):
            by_row: dict[int, list[tuple[int, int]]] = {}
            for kb, (row, column) in enumerate(second.entries):
                by_row.setdefault(row, []).append((kb, column))
            for ka, (i, middle) in enumerate(first.entries):
                for kb, j in by_row.get(middle, ()):
                    n, k = place[i, j]
                    own = Term((n, k, 0), (a, ka, 0), (b, kb, 0), 1)
                    longer = _longer(found[-1], own) if found else None
                    found = [*found[:-1], longer] if longer else [*found, own]
    return tuple(found)


def _longer(run: Term, one: Term) -> Term | None:
    """A run with one more product at its end, if that follows it."""
    pairs = [(a, b) for a, b in zip(run[:3], one[:3], strict=True)]
    if any(a[0] != b[0] for a, b in pairs):
        return None
    if run.length == 1:
        steps = [b[1] - a[1] for a, b in pairs]
    else:
        steps = [a[2] for a, _ in pairs]
    ends = [a[1] + step * run.length for (a, _), step in zip(pairs, steps, strict=True)]
    if {*steps} - {0, 1} or ends != [b[1] for _, b in pairs]:
        return None
    out, left, right = ((a[0], a[1], step) for (a, _), step in zip(pairs, steps, strict=True))
    return Term(out, left, right, run.length + 1)


def product(left: Bands, right: Bands, out: tuple[Band, ...]) -> Bands:
    """The product of two matrices, of which ``out`` has all entries that may not be zero."""
    totals: list[Any] = [None] * len(out)

    def cut(values: Sequence[Any], place: tuple[int, int, int], length: int) -> jax.Array:
        n, first, step = place
        return values[n][first : first + (length if step else 1)]

    for term in product_terms(left.bands, right.bands, out):
        n, first, step = term.out
        found = cut(left.values, term.left, term.length) * cut(
            right.values, term.right, term.length
        )
        found = found if step else found.sum(0, keepdims=True)
        around = (first, out[n].length - first - len(found))
        found = jnp.pad(found, (around, *((0, 0),) * (found.ndim - 1)))
        totals[n] = found if totals[n] is None else totals[n] + found
    like = jnp.result_type(*left.values), left.values[0].shape[1:]
    zeros = (jnp.zeros((band.length, *like[1]), like[0]) for band in out)
    values = (z if v is None else v for v, z in zip(totals, zeros, strict=True))
    return Bands(tuple(values), out, left.num_state)


def identity(bands: tuple[Band, ...], like: Bands, dtype: Any) -> Bands:
    """The identity by bands that have the diagonal, for matrices [S, S, ..] like some."""
    tail = like.values[0].shape[1:]

    def ones(band: Band) -> jax.Array:
        own = np.array([float(i == j) for i, j in band.entries])
        return jnp.broadcast_to(own.reshape(-1, *(1,) * len(tail)), (len(own), *tail)).astype(dtype)

    return Bands(tuple(map(ones, bands)), bands, like.num_state)


@lru_cache
def bands_of_products(bands: tuple[Band, ...], num_state: int) -> tuple[Band, ...] | None:
    """The bands of products of any number of matrices with the same bands, of none as well."""
    known = np.eye(num_state, dtype=bool)
    for band in bands:
        known[tuple(zip(*band.entries, strict=True))] = True
    for _ in range(num_state.bit_length()):
        known = known.astype(np.float32) @ known.astype(np.float32) > 0
    return bands_of(tuple(map(tuple, known.tolist())))
