# SPDX-License-Identifier: Apache-2.0
"""Numbers of positions: merged, spread, joined, and small where they do not differ."""

from __future__ import annotations

import numpy as np

from braintrace.jaxprs.positions.places import (
    NOTHING,
    SEVERAL,
    axes_along,
    blank,
    flat,
    join,
    merge,
    merge_axes,
    own_places,
    spread,
    whole,
)


def test_own_places_hold_an_axis_once() -> None:
    rows, columns = own_places((2, 1, 3, 4), (0, 1, 2))  # an axis of size one has no numbers
    assert rows.shape == (2, 1, 1, 1) and columns.shape == (1, 1, 3, 1)
    assert whole(rows, (2, 1, 3, 4), (2,)).shape == (2, 1, 3, 1)
    assert axes_along((rows, columns), (2, 1, 3), (2, 1, 3, 4)) == {0: 0, 2: 2}
    (scalar,) = own_places((4,), ())
    assert scalar.tolist() == [0]


def test_two_readers() -> None:
    (a,) = own_places((4,), (0,))
    assert merge(a, a) is a
    b = np.array([0, NOTHING, 3, SEVERAL])
    assert merge(a, b).tolist() == [0, 1, SEVERAL, SEVERAL]
    nothing = blank(1)
    assert merge(a, nothing) is a and merge(nothing, a).tolist() == a.tolist()
    one = np.array([2])
    assert merge(one, np.array([2, NOTHING])) is one
    row, _ = own_places((2, 3), (0, 1))
    assert merge(row, row[::-1]).tolist() == [[SEVERAL], [SEVERAL]]


def test_readers_along_axes() -> None:
    numbers = np.array([[1, 1, NOTHING], [NOTHING] * 3, [1, 2, 1]])
    assert merge_axes(numbers, (1,)).tolist() == [1, NOTHING, SEVERAL]
    assert merge_axes(numbers, ()).tolist() == numbers.tolist()
    assert merge_axes(np.zeros((2, 0), int), (1,)).tolist() == [NOTHING, NOTHING]
    row, _ = own_places((2, 3), (0, 1))
    assert merge_axes(row, (1,)).tolist() == [0, 1]


def test_spread_over_pairs() -> None:
    numbers = np.array([[0, 0, 0], [1, 2, 1]])
    assert spread(numbers, [(0, 0), (1, 1)], (2, 3), (2, 3)).tolist() == numbers.tolist()
    assert spread(numbers, [(1, 0)], (3, 2), (2, 3)).tolist() == [[0, SEVERAL]]
    assert spread(numbers, [(0, 1), (1, 0)], (3, 2), (2, 3)).tolist() == numbers.T.tolist()


def test_joined_parts_stay_small() -> None:
    rows, columns = own_places((2, 3), (0, 1))
    assert join([columns, columns], 1, (3, 3))[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert join([rows, rows], 1, (3, 3)).tolist() == [[0] * 6, [1] * 6]
    assert join([columns, blank(2)], 1, (3, 2)).tolist() == [[0, 1, 2, NOTHING, NOTHING]]


def test_flat_indices() -> None:
    assert flat(own_places((2, 3), (0, 1)), (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]  # type: ignore[union-attr]
    assert flat((np.array([0, NOTHING]), np.array([2, 1])), (2, 3)).tolist() == [2, NOTHING]  # type: ignore[union-attr]
    assert flat((np.array([0, SEVERAL]),), (2,)) is None
