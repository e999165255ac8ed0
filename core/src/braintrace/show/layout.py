# SPDX-License-Identifier: Apache-2.0
"""Where the boxes of a drawing stand, and the wires between them.

Cards stand in rows like words on a page. Between the columns are vertical *gutters*, between the
rows horizontal *channels*, and inside a card there is room for wires to the *left* of the
operations, in the *middle* between them and the group, and at the *bottom* under both. A wire only
runs in these corridors, so it crosses no box; wires from different places that run side by side
have tracks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .cards import Card, Item, text_size
from .facts import Flow, Node

TRACK, PORT, GAP, PAD = 9, 10, 18, 12
Point = tuple[float, float]
Side = tuple[Node, str]
"""A box, and its ``left``, ``right``, ``top`` or ``bottom``."""
Corridor = tuple[str, int]
"""Its kind, and the number of the card, gutter or channel."""
UPRIGHT = ("left", "middle", "gutter")


@dataclass(frozen=True)
class Placed:
    """An :class:`Item`, or the border of a card with its title, and its place."""

    what: Any
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class _Route:
    """A flow, the sides where it leaves and enters, and between which places of each corridor."""

    flow: Flow
    start: Side
    corridors: dict[Corridor, tuple[int, int]]
    end: Side


def _tracks(corridor: Corridor, spans: dict[Node, tuple[int, int]]) -> dict[Node, int]:
    """A track for every wire of a corridor; wires that overlap have different ones."""
    if corridor[0] not in ("gutter", "channel"):
        return {net: track for track, net in enumerate(spans)}
    ends: list[int] = []
    found: dict[Node, int] = {}
    for net, (low, high) in sorted(spans.items(), key=lambda kv: (kv[1], kv[0])):
        track = next((k for k, end in enumerate(ends) if end < low), len(ends))
        ends[track : track + 1] = [high]
        found[net] = track
    return found


class Layout:
    """Cards in rows of ``num_columns``, and every flow as a wire, with their coordinates.

    ``ends`` are the boxes of the input and of the output. What is found: ``width`` and ``height``;
    ``frames``, the borders of the cards, with their titles; ``boxes`` by node; ``wires``, the
    corners of every flow.
    """

    def __init__(
        self, cards: Sequence[Card], ends: Sequence[Item], flows: Sequence[Flow], num_columns: int
    ) -> None:
        self.cards, self.num_columns = cards, min(num_columns, len(cards))
        self.card_of = {
            item.node: k
            for k, card in enumerate(cards)
            for item in (*card.items, *filter(None, [card.group]))
        }
        self.cells = {node: divmod(k, self.num_columns) for node, k in self.card_of.items()}
        row, column = divmod(len(cards) - 1, self.num_columns)
        self.cells |= {("input", 0): (0, -1), ("output", 0): (row, column + 1)}
        self.attached: dict[Side, list[object]] = {}
        spans: dict[Corridor, dict[Node, tuple[int, int]]] = {}
        routes = [self._route(flow) for flow in flows]
        for route in routes:
            net = route.flow.source
            for side, what in ((route.start, net), (route.end, ("to", net))):
                there = self.attached.setdefault(side, [])
                there += [what] if what not in there else []
            for corridor, span in route.corridors.items():
                nets = spans.setdefault(corridor, {})
                places = (*nets.get(net, span), *span)
                nets[net] = min(places), max(places)
        self.tracks = {corridor: _tracks(corridor, nets) for corridor, nets in spans.items()}
        self.first: dict[Corridor, float] = {}  # coordinate of a corridor's first track
        self.boxes: dict[Node, Placed] = {}
        self.frames: list[Placed] = []
        self.height = self._place(ends)
        placed = [*self.boxes.values(), *self.frames]
        gutters = [(c, nets) for c, nets in self.tracks.items() if c[0] == "gutter"]
        rights = [self._along(corridor, net) for corridor, nets in gutters for net in nets]
        self.width = PAD + max([*rights, *(one.x + one.width for one in placed)])
        self.wires = {route.flow: self._wire(route) for route in routes}

    def _route(self, flow: Flow) -> _Route:
        """The corridors that a flow takes in turn; gutters and a channel lead to another card."""
        source, target = flow.source, flow.target
        box = ("group", source[1]) if source[0] in ("new", "old") else source
        card, into_group = self.card_of.get(box, -1), target[0] == "group"
        start, end, inside = "right", "left", ["middle"]
        outside: dict[Corridor, tuple[int, int]] = {}
        if card < 0 or card != self.card_of.get(target):
            end = "right" if into_group else "left"
            passes = card >= 0 and box[0] != "group" and self.cards[card].group is not None
            inside = ["middle", "bottom"] if passes else []  # under the group
            (r1, c1), (r2, c2) = self.cells[box], self.cells[target]
            a, b, channel = c1 + 1, c2 + into_group, r1 + (r2 > r1)  # next to the source
            if a == b:
                outside = {("gutter", a): (2 * r1 + 1, 2 * r2 + 1)}
            else:
                outside["gutter", a] = (2 * r1 + 1, 2 * channel)
                outside["channel", channel] = (a, b)
                outside["gutter", b] = (2 * channel, 2 * r2 + 1)
        elif box != source:  # from a group back to an operation of its own card
            start, inside = "bottom", ["bottom", "left"]
        elif not into_group:
            end, inside = "top", ["middle", "above"]
        corridors = {(kind, card): (0, 0) for kind in inside} | outside
        return _Route(flow, (box, start), corridors, (target, end))

    def _room(self, kind: str, number: int, least: int = 0) -> int:
        """What the tracks of a corridor take."""
        used = self.tracks.get((kind, number), {}).values()
        return TRACK * max(least, *(track + 1 for track in used), 0)

    def _box_size(self, item: Item) -> tuple[float, float]:
        """Room for the text and for everything attached."""
        left, right, top, bottom = (
            len(self.attached.get((item.node, side), ()))
            for side in ("left", "right", "top", "bottom")
        )
        width, height = text_size(*item.lines)
        return (
            max(width + 18, 16 + PORT * max(top, bottom)),
            max(height + 12, 8 + PORT * max(left, right)),
        )

    def _card(self, k: int) -> tuple[Placed, list[Placed], dict[str, float]]:
        """A card at the origin: its border, its boxes, and where its corridors begin."""
        card = self.cards[k]
        sizes = [self._box_size(item) for item in card.items]
        wide = max((w for w, _ in sizes), default=0.0)
        high = inner = sum(h for _, h in sizes) + GAP * max(len(sizes) - 1, 0)
        left = width = float(PAD)
        if sizes:
            left += 8 + self._room("left", k)
            width = left + wide + (26 if card.group else PAD) + self._room("middle", k)
        if card.group is not None:
            w, h = self._box_size(card.group)
            inner = max(high, h + GAP)
            group = Placed(card.group, width, 34 + (inner + GAP - h) / 2, w, h)
            width += w + PAD
        y = 34 + (inner - high) / 2
        boxes = []
        for item, (_, h) in zip(card.items, sizes, strict=True):
            boxes.append(Placed(item, left, y, wide, h))
            y += h + GAP
        boxes += [group] if card.group is not None else []
        width = max(width, text_size(("name", card.title))[0] + 2 * PAD)
        frame = Placed(card.title, 0, 0, width, 34 + inner + PAD + self._room("bottom", k))
        return frame, boxes, {"left": 8, "middle": left + wide + 10, "bottom": 34 + inner + 8}

    def _place(self, ends: Sequence[Item]) -> float:
        """Place every card in its cell, and the input and the output beside them; the height."""
        n = self.num_columns
        cards = [self._card(k) for k in range(len(self.cards))]
        widths = [max(frame.width for frame, *_ in cards[c::n]) for c in range(n)]
        heights = [
            max(frame.height for frame, *_ in cards[k : k + n]) for k in range(0, len(cards), n)
        ]
        columns, rows = [], []
        x, y = PAD + self._box_size(ends[0])[0], 0.0
        for c, width in enumerate((*widths, 0)):  # a gutter in front of each, one behind the last
            self.first["gutter", c] = x + 14
            columns.append(x + 34 + self._room("gutter", c, 1))
            x = columns[-1] + width
        for r, height in enumerate((*heights, 0)):  # a channel above each, one under the last
            self.first["channel", r] = y + 10
            rows.append(y + 16 + self._room("channel", r))
            y = rows[-1] + height
        for k, (frame, boxes, corridors) in enumerate(cards):
            r, c = divmod(k, n)
            x, y_ = columns[c], rows[r]
            wide = widths[c] if self.cards[k].group else frame.width
            self.frames.append(replace(frame, x=x, y=y_, width=wide))
            for box in boxes:
                self.boxes[box.what.node] = replace(box, x=x + box.x, y=y_ + box.y)
            for kind, at in corridors.items():
                self.first[kind, k] = at + (x if kind in UPRIGHT else y_)
        row, column = self.cells["output", 0]
        for item, x, r in ((ends[0], PAD, 0), (ends[1], columns[column], row)):
            w, h = self._box_size(item)
            self.boxes[item.node] = Placed(item, x, rows[r] + heights[r] / 2 - h / 2, w, h)
        return y

    def _along(self, corridor: Corridor, net: Node) -> float:
        """The coordinate of a wire that runs in a corridor."""
        return self.first[corridor] + TRACK * self.tracks[corridor][net]

    def _port(self, at: Side, what: object) -> Point:
        """Where something is attached to a box."""
        (node, side), there = at, self.attached[at]
        box, part = self.boxes[node], (there.index(what) + 1) / (len(there) + 1)
        if side in ("left", "right"):
            return box.x + (box.width if side == "right" else 0), round(box.y + box.height * part)
        return round(box.x + box.width * part), box.y + (box.height if side == "bottom" else 0)

    def _wire(self, route: _Route) -> tuple[Point, ...]:
        net = route.flow.source
        end = self._port(route.end, ("to", net))
        points = [self._port(route.start, net)]
        for corridor in route.corridors:
            x, y = points[-1]
            if corridor[0] in UPRIGHT:
                x = self._along(corridor, net)
            else:
                y = end[1] - GAP / 2 - 1 if corridor[0] == "above" else self._along(corridor, net)
            points.append((x, y))
        x, y = points[-1]
        return (*points, (x, end[1]) if corridor[0] in UPRIGHT else (end[0], y), end)
