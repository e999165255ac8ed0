# SPDX-License-Identifier: Apache-2.0
"""The bands of a transition from few derivatives: one for all bands that do not get in the way.

A reverse sweep from ones at some new states gives, for each old state, the sum of the entries in
their rows; a forward one from ones at some old states, for each new state, that of their columns.
Where there is one entry, the sum is that entry. So a shift takes one sweep, however long it is
(Curtis, Powell and Reid, J. Inst. Maths Applics 13:117, 1974; both directions: Coleman and Verma,
SIAM J. Sci. Comput. 19:1210, 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.reach import Pattern
from ..ops.traces.bands import Band, Bands
from .layout import Positions


class Sweep(NamedTuple):
    """A derivative of all states from ones at some of them, and the bands that it gives."""

    forward: bool
    seeds: frozenset[int]
    bands: tuple[int, ...]


@lru_cache
def sweeps_for(pattern: Pattern, bands: tuple[Band, ...]) -> tuple[Sweep, ...] | None:
    """Sweeps that give the bands of a matrix, each of them once; ``None`` where one has none."""
    known = np.array(pattern, bool)
    found: list[Sweep] = []
    for n in sorted(range(len(bands)), key=lambda n: -bands[n].length):
        own = bands[n]
        ways = [way for way, fits in ((False, own.right), (True, own.down)) if fits]
        alone = [Sweep(way, frozenset(), ()) for way in ways]
        tried = [_with(one, n, bands) for one in (*found, *alone) if one.forward in ways]
        fits = next((new for new in tried if _clean(new, bands, known)), None)
        if fits is None:
            return None
        found = [*(one for one in found if one.bands != fits.bands[:-1]), fits]
    return tuple(found)


def _with(sweep: Sweep, n: int, bands: Sequence[Band]) -> Sweep:
    """A sweep that gives another band, too."""
    own = bands[n].columns if sweep.forward else bands[n].rows
    seeds = sweep.seeds.union(range(own.start, own.stop))
    return Sweep(sweep.forward, seeds, (*sweep.bands, n))


def _clean(sweep: Sweep, bands: Sequence[Band], known: np.ndarray) -> bool:
    """Whether no other entry is added to those of the bands."""
    known = known.T if sweep.forward else known
    count = known[sorted(sweep.seeds)].sum(0)
    read = (bands[n].rows if sweep.forward else bands[n].columns for n in sweep.bands)
    return all((count[where] == 1).all() for where in read)


@dataclass(frozen=True, eq=False)
class BandedTransition:
    """The transition of a group with many states as a function, and the pattern of its ``D``.

    ``step`` gives new values of the members from old ones.
    """

    positions: Positions
    pattern: Pattern
    bands: tuple[Band, ...]
    step: Callable[[list[Any]], list[Any]]
    olds: list[Any]

    def matrix(self) -> Bands:
        """``D`` by its bands."""
        bands = self.bands
        values: dict[int, jax.Array] = {}
        _, pull = jax.vjp(self.step, self.olds)
        for sweep in sweeps_for(self.pattern, bands) or ():
            ones = ones_at(self.positions, sweep.seeds)
            if sweep.forward:
                _, moved = jax.jvp(self.step, (self.olds,), (ones,))
            else:
                (moved,) = pull(ones)
            for n in sweep.bands:
                where = bands[n].rows if sweep.forward else bands[n].columns
                values[n] = self._of_member(moved, where)
        return Bands(tuple(values[n] for n in range(len(bands))), bands, len(self.pattern))

    def _of_member(self, values: Sequence[Any], where: slice) -> jax.Array:
        """Some states [n, *V] of one member: what is constant of one depends on no other."""
        group, first = self.positions.group, 0
        for value, count, axis in zip(values, group.state_counts, group.state_axes, strict=True):
            if where.start < first + count:
                single = value.shape == group.varshape
                states = value[None] if single else jnp.moveaxis(value, axis, 0)
                return states[where.start - first : where.stop - first]
            first += count
        raise IndexError(f"states {where} of {first}")


def ones_at(positions: Positions, states: frozenset[int]) -> list[jax.Array]:
    """Values of the members that are one at some states, zero at the others."""
    group = positions.group
    ones = np.isin(np.arange(group.num_state), [*states]).reshape(-1, *(1,) * group.ndim)
    return positions.members(jnp.broadcast_to(ones, (group.num_state, *group.varshape)))
