# SPDX-License-Identifier: Apache-2.0
"""Which element of a result depends on each element of a source.

Where one product is cut into gates, axes are folded or flattened, or positions are permuted, no
axis of the source survives, and yet each of its elements reaches a single position of the result.
That is found by walking backward: every element of a variable gets the number of the position that
depends on it. An equation that moves elements moves the numbers back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from ...base import versions
from ...base.versions import JaxprEqn, Var, jaxp
from ..depends import differentiable
from .axes import REDUCTIONS, SCATTERS, WINDOWS, Labels, labels_of

NOTHING, SEVERAL = -1, -2
"""In place of a position: no position, or more than one, depends on the element."""

Numbers = np.ndarray


def element_map(
    eqns: Sequence[JaxprEqn], source: Var, targets: Sequence[Var], ndim: int, source_ndim: int
) -> Numbers | None:
    """For each element of the source, the one position of the targets that depends on it.

    Parameters
    ----------
    eqns, source, targets, ndim, source_ndim
        As for ``_positions.align``.

    Returns
    -------
    numpy.ndarray
        Flat indices of positions, in the shape of the source's positions; -1 where no position
        depends on an element. ``None`` when several positions depend on one element.
    """
    reached: dict[Var, Numbers] = {}
    for target in targets:
        _add(reached, target, _own(target.aval.shape, ndim))
    for eqn in reversed(eqns):
        if differentiable(eqn) and any(var in reached for var in eqn.outvars):
            outs = [reached.get(v, np.full(v.aval.shape, NOTHING)) for v in eqn.outvars]
            for k, atom in enumerate(eqn.invars):
                if versions.is_var(atom) and versions.is_float(atom.aval):
                    _add(reached, atom, _back(eqn, k, outs))
    if source not in reached:
        return None
    states = tuple(range(source_ndim, source.aval.ndim))
    found = merge_axes(reached[source], states)
    return None if np.any(found == SEVERAL) else found


def _own(shape: tuple[int, ...], ndim: int) -> Numbers:
    """Every element's own position; the axes behind the positions hold their states."""
    own = np.arange(math.prod(shape[:ndim])).reshape((*shape[:ndim], *(1,) * (len(shape) - ndim)))
    return np.broadcast_to(own, shape)


def _add(reached: dict[Var, Numbers], var: Var, found: Numbers) -> None:
    reached[var] = merge(reached[var], found) if var in reached else found


def merge(a: Numbers, b: Numbers) -> Numbers:
    """What two readers of an element reach together."""
    both = np.where(a == b, a, SEVERAL)
    return np.where(a == NOTHING, b, np.where(b == NOTHING, a, both))


def merge_axes(numbers: Numbers, axes: tuple[int, ...]) -> Numbers:
    """What the readers along some axes reach together."""
    if not axes:
        return numbers
    highest = numbers.max(axis=axes, initial=NOTHING)
    lowest = np.where(numbers == NOTHING, np.iinfo(numbers.dtype).max, numbers).min(
        axis=axes, initial=np.iinfo(numbers.dtype).max
    )
    same = (highest == NOTHING) & (lowest > highest) | (lowest == highest)
    return np.where(same, highest, SEVERAL)


def _back(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    """The numbers of operand ``k``, from those of the results."""
    shape = eqn.invars[k].aval.shape
    if eqn.primitive in MOVES:
        return MOVES[eqn.primitive](eqn, k, outs)
    if eqn.primitive in SCATTERS and k == 0:
        return outs[0]
    if eqn.primitive in REDUCTIONS:
        return np.broadcast_to(np.expand_dims(outs[0], eqn.params["axes"]), shape)
    own: Labels = tuple(i if n > 1 else None for i, n in enumerate(shape))
    alone: list[Labels | None] = [own if i == k else None for i in range(len(eqn.invars))]
    together = np.full(shape, NOTHING)
    for out, label in zip(outs, labels_of(eqn, alone), strict=True):
        if label is not None:
            in_place = label == (None,) * (out.ndim - len(shape)) + own
            found = _unbroadcast(out, shape) if in_place else merge_axes(out, (*range(out.ndim),))
            together = merge(together, np.broadcast_to(found, shape))
    return together


def _unbroadcast(numbers: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Merge along the axes along which an operand of ``shape`` was broadcast."""
    lead = numbers.ndim - len(shape)
    grown = [lead + i for i, n in enumerate(shape) if n == 1 and numbers.shape[lead + i] > 1]
    return merge_axes(numbers, (*range(lead), *grown)).reshape(shape)


# --- equations that move elements: numbers of the results -> numbers of an operand ------------


def _reshape(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    return outs[0].reshape(eqn.invars[0].aval.shape)


def _transpose(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    return outs[0].transpose(np.argsort(eqn.params["permutation"]))


def _broadcast(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    shape, kept = eqn.invars[0].aval.shape, eqn.params["broadcast_dimensions"]
    grown = [d for d, n in zip(kept, shape, strict=True) if outs[0].shape[d] != n]
    new = [d for d in range(outs[0].ndim) if d not in kept]
    return merge_axes(outs[0], (*new, *grown)).reshape(shape)


def _slice(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    found = np.full(eqn.invars[0].aval.shape, NOTHING)
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)
    found[tuple(map(slice, start, limit, strides))] = outs[0]
    return found


def _rev(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    return np.flip(outs[0], eqn.params["dimensions"])


def _concatenate(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    axis = eqn.params["dimension"]
    ends = np.cumsum([v.aval.shape[axis] for v in eqn.invars])
    return np.split(outs[0], ends[:-1], axis)[k]


def _split(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    return np.concatenate(outs, eqn.params["axis"])


def _stack(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    return np.take(outs[0], k, eqn.params["axis"])


def _unstack(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    return np.stack(outs, eqn.params["axis"])


def _window(eqn: JaxprEqn, k: int, outs: list[Numbers]) -> Numbers:
    """An element reaches what comes of the windows that it is in."""
    params, shape, numbers = eqn.params, eqn.invars[k].aval.shape, reduce(merge, outs)
    low, high = zip(*params["padding"], strict=True)
    if len(shape) != numbers.ndim or min(*low, *high) < 0:  # an initial value; a cropped operand
        return np.broadcast_to(merge_axes(numbers, (*range(numbers.ndim),)), shape)
    apart, between = params["base_dilation"], params["window_dilation"]
    sizes = zip(shape, apart, low, high, strict=True)
    padded = np.full([a + (n - 1) * d + 1 + b for n, d, a, b in sizes], NOTHING)
    for offset in np.ndindex(*params["window_dimensions"]):
        start = [i * d for i, d in zip(offset, between, strict=True)]
        read = _every(start, numbers.shape, params["window_strides"])
        padded[read] = merge(padded[read], numbers)
    return padded[_every(low, shape, apart)]


def _every(start: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    """Along each axis, so many indices in steps."""
    axes = zip(start, sizes, steps, strict=True)
    return tuple(slice(first, first + n * step, step) for first, n, step in axes)


Move = Callable[[JaxprEqn, int, list[Numbers]], Numbers]

_CUTS: dict[str, Move] = {"split": _split, "stack": _stack, "unstack": _unstack}

MOVES: dict[Any, Move] = {
    jaxp.reshape_p: _reshape,
    jaxp.squeeze_p: _reshape,
    jaxp.transpose_p: _transpose,
    jaxp.broadcast_in_dim_p: _broadcast,
    jaxp.slice_p: _slice,
    jaxp.rev_p: _rev,
    jaxp.concatenate_p: _concatenate,
    **{p: _CUTS[name] for name, p in versions.rearranging().items() if name in _CUTS},
    **dict.fromkeys(WINDOWS, _window),
}
