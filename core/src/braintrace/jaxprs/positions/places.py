# SPDX-License-Identifier: Apache-2.0
"""What the elements of a variable reach, told along one axis of the result: an array of indices.

An array that says the same all along an axis holds it once: a stride of zero stands for the whole
axis, and what is computed here stays as small as that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce

import numpy as np

Numbers = np.ndarray
Places = tuple[Numbers, ...]
"""The numbers of a variable for each axis of the result that has more than one position."""

Pairs = Iterable[tuple[int, int]]
"""Axes of an operand and of a result along which an element depends on that of its own index."""

NOTHING, SEVERAL = -1, -2
"""In place of an index: no position, or more than one, depends on the element."""


@lru_cache(maxsize=512)
def own_places(shape: tuple[int, ...], ndim: int) -> Places:
    """Every element's own position; the axes behind the first ``ndim`` hold the states of one."""
    columns = [
        np.arange(n).reshape(n, *(1,) * (len(shape) - k - 1))
        for k, n in enumerate(shape[:ndim])
        if n > 1
    ]
    return tuple(np.broadcast_to(c, shape) for c in columns or [np.zeros((), int)])


def blank(shape: Sequence[int], count: int) -> Places:
    """Places of a variable that reaches nothing."""
    return (np.broadcast_to(NOTHING, shape),) * count


def small(numbers: Numbers, keep: Sequence[int] = ()) -> Numbers:
    """The same numbers, once along axes on which they do not differ, but for those to ``keep``."""
    once, every = slice(0, 1), slice(None)
    strides = enumerate(numbers.strides)
    return numbers[tuple(every if n or i in keep else once for i, n in strides)]


def merge(a: Numbers, b: Numbers) -> Numbers:
    """What two readers of an element reach together; ``a`` itself where ``b`` adds nothing."""
    if a is b:
        return a
    x, y = small(a), small(b)
    both = np.where(x == y, x, SEVERAL)
    found = np.where(x == NOTHING, y, np.where(y == NOTHING, x, both))
    return a if found.shape == x.shape and (found == x).all() else np.broadcast_to(found, a.shape)


def merge_axes(numbers: Numbers, axes: Iterable[int]) -> Numbers:
    """What the readers along some axes reach together."""
    axes = frozenset(axes)
    if not axes:
        return numbers
    alike = [i in axes and numbers.strides[i] == 0 < n for i, n in enumerate(numbers.shape)]
    rest = tuple(i - sum(alike[:i]) for i in axes if not alike[i])
    numbers = numbers[tuple(0 if same else slice(None) for same in alike)]
    if not rest:
        return numbers
    part, last = small(numbers, rest), np.iinfo(numbers.dtype).max
    highest = part.max(axis=rest, initial=NOTHING)
    lowest = np.where(part == NOTHING, last, part).min(axis=rest, initial=last)
    same = (highest == NOTHING) & (lowest > highest) | (lowest == highest)
    left = [n for i, n in enumerate(numbers.shape) if i not in rest]
    return np.broadcast_to(np.where(same, highest, SEVERAL), left)


def spread(numbers: Numbers, pairs: Pairs, shape: Sequence[int]) -> Numbers:
    """The numbers of an operand of ``shape``, of which elements reach all that pairs allow."""
    place = {i: k for i, k in pairs if shape[i] == numbers.shape[k]}
    if len(place) == numbers.ndim == len(shape) and all(i == k for i, k in place.items()):
        return numbers
    kept = sorted(place.values())
    found = merge_axes(numbers, set(range(numbers.ndim)).difference(kept))
    found = found.transpose([kept.index(place[i]) for i in sorted(place)])
    grown = tuple(slice(None) if i in place else None for i in range(len(shape)))
    return np.broadcast_to(found[grown], shape)


def join(parts: Sequence[Numbers], axis: int) -> Numbers:
    """Numbers behind one another along an axis."""
    few = [small(part, (axis,)) for part in parts]
    common = np.broadcast_shapes(*(np.delete(part.shape, axis) for part in few))
    head, tail = common[:axis], common[axis:]
    joined = np.concatenate(
        [np.broadcast_to(part, (*head, part.shape[axis], *tail)) for part in few], axis
    )
    shape = parts[0].shape
    return np.broadcast_to(joined, (*shape[:axis], joined.shape[axis], *shape[axis + 1 :]))


def axes_along(places: Places, result: Sequence[int], source: Sequence[int]) -> dict[int, int]:
    """The axis of the result that an axis of the source runs along: with the same indices.

    No two axes of the source run along one of the result.
    """
    found: dict[int, int] = {}
    numbered = [k for k, n in enumerate(result) if n > 1]
    for k, numbers in zip(numbered, map(small, places), strict=False):
        for i, n in enumerate(source):
            if numbers.shape[i] == n == result[k]:
                own = np.arange(n).reshape(n, *(1,) * (len(source) - i - 1))
                if i not in found and ((numbers == own) | (numbers == NOTHING)).all():
                    found[i] = k
                    break
    return found


def flat(places: Places, sizes: Sequence[int]) -> Numbers | None:
    """Flat indices of positions, or ``NOTHING``; ``None`` where an element reaches several."""
    if any((small(c) == SEVERAL).any() for c in places):
        return None
    found = np.zeros((), int)
    for numbers, size in zip(places, [n for n in sizes if n > 1] or [1], strict=True):
        found = found * size + numbers
    empty = reduce(np.logical_or, (c == NOTHING for c in places))
    return np.where(empty, NOTHING, found)
