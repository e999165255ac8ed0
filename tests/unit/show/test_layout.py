# SPDX-License-Identifier: Apache-2.0
"""Boxes stand in rows, and wires run between them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from braintrace.show.cards import Card, Item
from braintrace.show.facts import Flow, Node
from braintrace.show.layout import TRACK, Layout, _tracks

ENDS = tuple(Item((name, 0), "end", (("name", name),), name) for name in ("input", "output"))


def box(*node: object) -> Item:
    return Item(node, "relation", (("name", "w"),), "")  # type: ignore[arg-type]


def card(k: int, *items: Item, group: bool = True) -> Card:
    return Card(k, group=box("group", k) if group else None, items=[*items])


def laid_out(cards: list[Card], *flows: tuple[Node, Node], columns: int = 2) -> Layout:
    return Layout(cards, ENDS, [Flow(a, b, True) for a, b in flows], columns)


def test_cards_stand_in_rows_like_words() -> None:
    layout = laid_out([card(k, box("op", k)) for k in range(3)])
    first, second, third = layout.frames
    assert first.y == second.y < third.y and first.x == third.x < second.x
    assert second.x >= first.x + first.width and third.y >= first.y + first.height
    assert layout.boxes["input", 0].x < first.x
    assert layout.boxes["output", 0].x > third.x + third.width
    assert all(p.x + p.width <= layout.width for p in layout.boxes.values())
    assert all(p.y + p.height <= layout.height for p in layout.frames)


def test_there_are_no_more_columns_than_cards() -> None:
    assert laid_out([card(0)], columns=8).num_columns == 1


def test_operations_are_above_each_other_and_left_of_the_group() -> None:
    layout = laid_out([card(0, box("op", 1), box("op", 2))])
    one, two, group = (layout.boxes[node] for node in (("op", 1), ("op", 2), ("group", 0)))
    assert one.x == two.x and one.y + one.height <= two.y
    assert one.x + one.width <= group.x


FLOWS: list[tuple[Node, Node]] = [
    (("input", 0), ("op", 1)),
    (("op", 1), ("group", 0)),
    (("old", 0), ("op", 1)),
    (("new", 0), ("op", 2)),
    (("op", 2), ("group", 1)),
    (("op", 1), ("op", 3)),
    (("new", 0), ("op", 4)),
    (("new", 2), ("output", 0)),
]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_wires_lead_from_box_to_box_in_straight_lines(columns: int) -> None:
    cards = [card(0, box("op", 1), box("op", 3)), card(1, box("op", 2)), card(2, box("op", 4))]
    layout = laid_out(cards, *FLOWS, columns=columns)
    assert len(layout.wires) == len(FLOWS)
    for flow, points in layout.wires.items():
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(points)), flow
        source = ("group", flow.source[1]) if flow.source[0] in ("new", "old") else flow.source
        for node, (x, y) in ((source, points[0]), (flow.target, points[-1])):
            at = layout.boxes[node]
            assert at.x <= x <= at.x + at.width and at.y <= y <= at.y + at.height
            assert x in (at.x, at.x + at.width) or y in (at.y, at.y + at.height)


def test_wires_that_overlap_have_tracks_of_their_own() -> None:
    a, b, c = ("op", 1), ("op", 2), ("op", 3)
    assert _tracks(("gutter", 0), {a: (0, 3), b: (2, 5), c: (4, 6)}) == {a: 0, b: 1, c: 0}
    assert _tracks(("left", 0), {a: (0, 0), b: (0, 0)}) == {a: 0, b: 1}


def test_a_gutter_is_as_wide_as_its_tracks() -> None:
    cards = [card(0), card(1, *(box("op", k) for k in range(3)))]
    narrow = laid_out(cards, (("new", 0), ("op", 0)))
    inputs = [(("input", 0), ("op", 0)), (("new", 0), ("op", 1))]
    wide = laid_out(cards, *inputs)
    assert {*wide.tracks["gutter", 1].values()} == {0, 1}
    assert wide.frames[1].x - narrow.frames[1].x == TRACK
