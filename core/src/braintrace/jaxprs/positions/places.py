# SPDX-License-Identifier: Apache-2.0
"""What the elements of a variable reach, told along one axis of the result: an array of indices.

It has the axes of the variable; along one on which it says the same everywhere, it says it once.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from functools import lru_cache, reduce

import numpy as np

Numbers = np.ndarray
Places = tuple[Numbers, ...]
"""The numbers of a variable for each axis of the result that has more than one position."""

Pairs = Iterable[tuple[int, int]]
"""Axes of an operand and of a result along which an element depends on that of its own index."""

NOTHING, SEVERAL, LAST = -1, -2, np.iinfo(int).max
"""In place of an index: no position, or more than one, depends on the element."""


@lru_cache(maxsize=512)
def own_places(shape: tuple[int, ...], axes: tuple[int, ...] | None = None) -> Places:
    """Every element's own position along all axes, or some: the others hold the states of one."""
    own = np.indices(shape, sparse=True)
    columns = tuple(own[k] for k in (range(len(shape)) if axes is None else axes) if shape[k] > 1)
    return columns or (np.zeros((1,) * len(shape), int),)


def blank(ndim: int) -> Numbers:
    """Numbers of a variable that reaches nothing."""
    return np.full((1,) * ndim, NOTHING)


def whole(numbers: Numbers, shape: Sequence[int], axes: Container[int]) -> Numbers:
    """The numbers of a variable of ``shape`` at every index of some axes."""
    sizes = tuple(shape[i] if i in axes else n for i, n in enumerate(numbers.shape))
    return numbers if sizes == numbers.shape else np.broadcast_to(numbers, sizes)


def merge(a: Numbers, b: Numbers) -> Numbers:
    """What two readers of an element reach together; ``a`` itself where ``b`` adds nothing."""
    if a is b:
        return a
    both = np.where(a == b, a, SEVERAL)
    found = np.where(a == NOTHING, b, np.where(b == NOTHING, a, both))
    return a if (found == a).all() else found


def merge_axes(numbers: Numbers, axes: Iterable[int]) -> Numbers:
    """What the readers along some axes reach together."""
    axes = tuple(axes)
    if all(numbers.shape[i] == 1 for i in axes):
        return numbers.squeeze(axes)
    highest = numbers.max(axes, initial=NOTHING)
    lowest = np.where(numbers == NOTHING, LAST, numbers).min(axes, initial=LAST)
    same = (highest == NOTHING) & (lowest > highest) | (lowest == highest)
    return np.where(same, highest, SEVERAL)


def spread(numbers: Numbers, pairs: Pairs, shape: Sequence[int], result: Sequence[int]) -> Numbers:
    """The numbers of an operand of ``shape``, of which elements reach all that pairs allow."""
    place = {i: k for i, k in pairs if shape[i] == result[k]}
    kept = sorted(place.values())
    found = merge_axes(numbers, set(range(len(result))).difference(kept))
    found = found.transpose([kept.index(place[i]) for i in sorted(place)])
    return np.expand_dims(found, [i for i in range(len(shape)) if i not in place])


def join(parts: Sequence[Numbers], axis: int, sizes: Iterable[int]) -> Numbers:
    """Numbers behind one another along an axis, on which the variables have these sizes."""
    common = np.broadcast_shapes(*(np.delete(part.shape, axis) for part in parts))
    head, tail = common[:axis], common[axis:]
    pairs = zip(parts, sizes, strict=True)
    return np.concatenate([np.broadcast_to(part, (*head, n, *tail)) for part, n in pairs], axis)


def axes_along(places: Places, result: Sequence[int], source: Sequence[int]) -> dict[int, int]:
    """The axis of the result that an axis of the source runs along: with the same indices.

    No two axes of the source run along one of the result.
    """
    found: dict[int, int] = {}
    own = np.indices(source, sparse=True)
    for k, numbers in zip([k for k, n in enumerate(result) if n > 1], places, strict=False):
        for i, n in enumerate(source):
            fits = i not in found and numbers.shape[i] == n == result[k]
            if fits and ((numbers == own[i]) | (numbers == NOTHING)).all():
                found[i] = k
                break
    return found


def flat(places: Places, sizes: Sequence[int]) -> Numbers | None:
    """Flat indices of positions, or ``NOTHING``; ``None`` where an element reaches several."""
    if any((numbers == SEVERAL).any() for numbers in places):
        return None
    found = np.zeros((), int)
    for numbers, size in zip(places, [n for n in sizes if n > 1] or [1], strict=True):
        found = found * size + numbers
    empty = reduce(np.logical_or, (numbers == NOTHING for numbers in places))
    return np.where(empty, NOTHING, found)
