# SPDX-License-Identifier: Apache-2.0
"""Where the boxes of a drawing stand, and the wires between them.

Cards stand in rows like words on a page. Between the columns are vertical *gutters*, between the
rows horizontal *channels*, and inside a card there is room for wires to the left of the
operations, between them and the group, and under both. A wire only runs in these, so it
crosses no box; wires from different places that run side by side have tracks of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .cards import Card, Item, home, text_height, text_width
from .facts import Flow, Node

TRACK, PORT, GAP, PAD = 9, 10, 18, 12
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A placed box."""

    item: Item
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Frame:
    """The border of a placed card."""

    title: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Wire:
    """A way from a box to another, as corners."""

    flow: Flow
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Layout:
    """Everything with its coordinates."""

    width: float
    height: float
    frames: tuple[Frame, ...]
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]


def lay_out(
    cards: Sequence[Card], ends: tuple[Item, Item], flows: Sequence[Flow], num_columns: int
) -> Layout:
    """Place the cards in rows of ``num_columns``, and route every flow.

    ``ends`` are the boxes of the input and of the output.
    """
    plan = _Plan(cards, num_columns)
    for flow in flows:
        plan.add(flow)
    return _Placement(plan, ends).layout()


@dataclass
class _Lanes:
    """The wires inside a card: left of the operations, in the middle, and under the boxes."""

    left: list[Node] = field(default_factory=list)
    middle: list[Node] = field(default_factory=list)
    bottom: list[Node] = field(default_factory=list)


@dataclass
class _Sides:
    """What is attached to the sides of a box, in order: sources, or ``("to", source)``."""

    left: list[object] = field(default_factory=list)
    right: list[object] = field(default_factory=list)
    top: list[object] = field(default_factory=list)
    bottom: list[object] = field(default_factory=list)


def _note(where: list[object] | list[Node], what: object) -> None:
    if what not in where:
        where.append(what)  # type: ignore[arg-type]


class _Plan:
    """Which corridors each flow takes, before anything has coordinates."""

    def __init__(self, cards: Sequence[Card], num_columns: int) -> None:
        self.cards = cards
        self.num_columns = min(num_columns, len(cards))
        self.num_rows = -(-len(cards) // self.num_columns)
        self.card_of: dict[Node, int] = {}
        for k, card in enumerate(cards):
            for item in (*card.items, *([card.group] if card.group else [])):
                self.card_of[item.node] = k
        self.lanes = [_Lanes() for _ in cards]
        self.sides: dict[Node, _Sides] = {}
        self.gutters: list[dict[Node, list[int]]] = [{} for _ in range(self.num_columns + 1)]
        self.channels: list[dict[Node, list[int]]] = [{} for _ in range(self.num_rows + 1)]
        self.flows: list[Flow] = []

    def sides_of(self, node: Node) -> _Sides:
        return self.sides.setdefault(node, _Sides())

    def cell(self, node: Node) -> tuple[int, int]:
        """Row and column of the card that a box stands in; the ends have cells of their own."""
        if node[0] == "input":
            return 0, -1
        if node[0] == "output":
            row, column = divmod(len(self.cards) - 1, self.num_columns)
            return row, column + 1
        return divmod(self.card_of[node], self.num_columns)

    def inside(self, flow: Flow) -> int | None:
        """The card that a flow stays in."""
        card = self.card_of.get(home(flow.source))
        return card if card is not None and card == self.card_of.get(flow.target) else None

    def leaves_below(self, node: Node) -> bool:
        """Whether a group stands between an operation and the gutter on its right."""
        card = self.card_of.get(node)
        return card is not None and self.cards[card].group is not None and node[0] != "group"

    def gutters_of(self, flow: Flow) -> tuple[int, int]:
        """The gutter in which a flow leaves its card, and the one from which it enters."""
        _, a = self.cell(home(flow.source))
        _, b = self.cell(flow.target)
        return a + 1, b + 1 if flow.target[0] == "group" else b

    def channel_of(self, flow: Flow) -> int:
        """The channel between two gutters: next to the source, towards the target."""
        r1, r2 = self.cell(home(flow.source))[0], self.cell(flow.target)[0]
        return r1 + 1 if r2 > r1 else r1

    def add(self, flow: Flow) -> None:
        self.flows.append(flow)
        card = self.inside(flow)
        if card is None:
            self._between(flow)
        elif flow.source[0] in ("new", "old"):
            self._back(flow, self.lanes[card])
        else:
            self._forward(flow, self.lanes[card])

    def _forward(self, flow: Flow, lanes: _Lanes) -> None:
        """From an operation to the group of its card, or from above to another operation."""
        _note(self.sides_of(flow.source).right, flow.source)
        _note(lanes.middle, flow.source)
        target = self.sides_of(flow.target)
        _note(target.left if flow.target[0] == "group" else target.top, ("to", flow.source))

    def _back(self, flow: Flow, lanes: _Lanes) -> None:
        """From a group to an operation of its own card."""
        _note(self.sides_of(home(flow.source)).bottom, flow.source)
        _note(lanes.bottom, flow.source)
        _note(lanes.left, flow.source)
        _note(self.sides_of(flow.target).left, ("to", flow.source))

    def _between(self, flow: Flow) -> None:
        """From card to card, through gutters and channels."""
        source, target = flow.source, flow.target
        r1, r2 = self.cell(home(source))[0], self.cell(target)[0]
        a, b = self.gutters_of(flow)
        _note(self.sides_of(home(source)).right, source)
        if self.leaves_below(source):
            lanes = self.lanes[self.card_of[source]]
            _note(lanes.middle, source)
            _note(lanes.bottom, source)
        sides = self.sides_of(target)
        _note(sides.right if target[0] == "group" else sides.left, ("to", source))
        if a == b:
            _extend(self.gutters[a], source, 2 * r1 + 1, 2 * r2 + 1)
            return
        channel = self.channel_of(flow)
        _extend(self.gutters[a], source, 2 * r1 + 1, 2 * channel)
        _extend(self.channels[channel], source, a, b)
        _extend(self.gutters[b], source, 2 * channel, 2 * r2 + 1)


def _extend(corridor: dict[Node, list[int]], net: Node, *places: int) -> None:
    span = corridor.setdefault(net, [*places])
    span[:] = [min(*span, *places), max(*span, *places)]


def _tracks(corridor: dict[Node, list[int]]) -> dict[Node, int]:
    """A track for every wire of a corridor; wires that overlap have different ones."""
    ends: list[int] = []
    found: dict[Node, int] = {}
    for net, (low, high) in sorted(corridor.items(), key=lambda kv: (kv[1], kv[0])):
        track = next((k for k, end in enumerate(ends) if end < low), len(ends))
        ends[track : track + 1] = [high]
        found[net] = track
    return found


class _Placement:
    """Coordinates of a plan."""

    def __init__(self, plan: _Plan, ends: tuple[Item, Item]) -> None:
        self.plan = plan
        self.tracks_v = [_tracks(corridor) for corridor in plan.gutters]
        self.tracks_h = [_tracks(corridor) for corridor in plan.channels]
        self.boxes: dict[Node, Box] = {}
        self.frames: list[Frame] = []
        self.lane_y: dict[tuple[int, Node], float] = {}
        self.left_x: dict[tuple[int, Node], float] = {}
        self.middle_x: dict[tuple[int, Node], float] = {}
        self._grid(ends)

    # sizes

    def box_size(self, item: Item) -> tuple[float, float]:
        """Room for the text and for everything attached."""
        sides = self.plan.sides_of(item.node)
        ports = max(len(sides.left), len(sides.right))
        across = max(len(sides.top), len(sides.bottom))
        return (
            max(text_width(item.lines) + 18, 16 + PORT * across),
            max(text_height(item.lines) + 12, 8 + PORT * ports),
        )

    def card_size(self, k: int) -> tuple[float, float]:
        card, lanes = self.plan.cards[k], self.plan.lanes[k]
        left, middle = self.margins(k)
        sizes = [self.box_size(item) for item in card.items]
        width = left + max((w for w, _ in sizes), default=0) + middle
        height = sum(h for _, h in sizes) + GAP * max(len(sizes) - 1, 0)
        if card.group is not None:
            w, h = self.box_size(card.group)
            width, height = width + w + PAD, max(height, h + GAP)
        title = text_width([("name", card.title)]) + 2 * PAD
        return max(width, title), 34 + height + PAD + TRACK * len(lanes.bottom)

    def margins(self, k: int) -> tuple[float, float]:
        """Room left of the operations, and between them and the group."""
        card, lanes = self.plan.cards[k], self.plan.lanes[k]
        left = PAD + 8 + TRACK * len(lanes.left)
        if not card.items:
            return PAD, 0
        wide = 26 if card.group is not None else PAD
        return left, wide + TRACK * len(lanes.middle)

    # places

    def _grid(self, ends: tuple[Item, Item]) -> None:
        """Place every card in its cell, and the input and the output beside them."""
        plan = self.plan
        sizes = [self.card_size(k) for k in range(len(plan.cards))]
        widths = [max(w for w, _ in sizes[c :: plan.num_columns]) for c in range(plan.num_columns)]
        starts = range(0, len(sizes), plan.num_columns)
        heights = [max(h for _, h in sizes[k : k + plan.num_columns]) for k in starts]
        self._columns(PAD + self.box_size(ends[0])[0], widths)
        self._rows(heights)
        for k, (w, h) in enumerate(sizes):
            r, c = divmod(k, plan.num_columns)
            wide = widths[c] if plan.cards[k].group is not None else w
            self._card(k, self.column_x[c], self.row_y[r], (wide, h))
        self._end(ends[0], PAD, self.row_y[0] + heights[0] / 2)
        row, column = plan.cell(("output", 0))
        self._end(ends[1], self.column_x[column], self.row_y[row] + heights[row] / 2)
        self.width = PAD + max(
            *(box.x + box.width for box in self.boxes.values()),
            *(frame.x + frame.width for frame in self.frames),
            *(self.track_x(c, net) for c, tracks in enumerate(self.tracks_v) for net in tracks),
        )

    def _columns(self, x: float, widths: Sequence[float]) -> None:
        """A gutter in front of every column, and one behind the last."""
        self.gutter_x: list[float] = []
        self.column_x: list[float] = []
        for tracks, width in zip(self.tracks_v, (*widths, 0), strict=True):
            self.gutter_x.append(x + 14)
            x += 34 + TRACK * (max(tracks.values(), default=0) + 1)
            self.column_x.append(x)
            x += width

    def _rows(self, heights: Sequence[float]) -> None:
        """A channel above every row, and one under the last."""
        self.channel_y: list[float] = []
        self.row_y: list[float] = []
        y: float = 0
        for tracks, height in zip(self.tracks_h, (*heights, 0), strict=True):
            self.channel_y.append(y + 10)
            y += 16 + TRACK * (max(tracks.values(), default=-1) + 1)
            self.row_y.append(y)
            y += height
        self.height = y

    def track_x(self, gutter: int, net: Node) -> float:
        return self.gutter_x[gutter] + TRACK * self.tracks_v[gutter][net]

    def track_y(self, channel: int, net: Node) -> float:
        return self.channel_y[channel] + TRACK * self.tracks_h[channel][net]

    def _end(self, item: Item, x: float, middle: float) -> None:
        width, height = self.box_size(item)
        self.boxes[item.node] = Box(item, x, middle - height / 2, width, height)

    def _card(self, k: int, x: float, y: float, size: tuple[float, float]) -> None:
        card, lanes = self.plan.cards[k], self.plan.lanes[k]
        self.frames.append(Frame(card.title, x, y, *size))
        left, middle = self.margins(k)
        sizes = [self.box_size(item) for item in card.items]
        wide = max((w for w, _ in sizes), default=0)
        top, bottom = y + 34, y + size[1] - PAD - TRACK * len(lanes.bottom)
        spare = bottom - top - sum(h for _, h in sizes) - GAP * max(len(sizes) - 1, 0)
        at = top + spare / 2
        for item, (_, high) in zip(card.items, sizes, strict=True):
            self.boxes[item.node] = Box(item, x + left, at, wide, high)
            at += high + GAP
        if card.group is not None:
            w, h = self.box_size(card.group)
            at = (top + bottom + GAP - h) / 2
            self.boxes[card.group.node] = Box(card.group, x + left + wide + middle, at, w, h)
        for n, net in enumerate(lanes.left):
            self.left_x[k, net] = x + 8 + TRACK * n
        for n, net in enumerate(lanes.middle):
            self.middle_x[k, net] = x + left + wide + 10 + TRACK * n
        for n, net in enumerate(lanes.bottom):
            self.lane_y[k, net] = bottom + 8 + TRACK * n

    # wires

    def layout(self) -> Layout:
        wires = tuple(Wire(flow, self._wire(flow)) for flow in self.plan.flows)
        return Layout(
            self.width, self.height, tuple(self.frames), tuple(self.boxes.values()), wires
        )

    def port(self, node: Node, side: str, what: object) -> Point:
        """Where something is attached to a box."""
        box, there = self.boxes[node], getattr(self.plan.sides_of(node), side)
        part = (there.index(what) + 1) / (len(there) + 1)
        if side in ("left", "right"):
            return box.x + (box.width if side == "right" else 0), round(box.y + box.height * part)
        return round(box.x + box.width * part), box.y + (box.height if side == "bottom" else 0)

    def _wire(self, flow: Flow) -> tuple[Point, ...]:
        card = self.plan.inside(flow)
        if card is None:
            return self._wire_between(flow)
        if flow.source[0] in ("new", "old"):
            return self._wire_back(flow, card)
        start = self.port(flow.source, "right", flow.source)
        y = start[1]
        lane = self.middle_x[card, flow.source]
        if flow.target[0] == "group":
            end = self.port(flow.target, "left", ("to", flow.source))
            return start, (lane, y), (lane, end[1]), end
        end = self.port(flow.target, "top", ("to", flow.source))
        above = end[1] - GAP / 2 - 1
        return start, (lane, y), (lane, above), (end[0], above), end

    def _wire_back(self, flow: Flow, card: int) -> tuple[Point, ...]:
        start = self.port(home(flow.source), "bottom", flow.source)
        end = self.port(flow.target, "left", ("to", flow.source))
        lane, left = self.lane_y[card, flow.source], self.left_x[card, flow.source]
        return start, (start[0], lane), (left, lane), (left, end[1]), end

    def _wire_between(self, flow: Flow) -> tuple[Point, ...]:
        source, target = flow.source, flow.target
        a, b = self.plan.gutters_of(flow)
        points = [self.port(home(source), "right", source)]
        if self.plan.leaves_below(source):
            card = self.plan.card_of[source]
            points.append((self.middle_x[card, source], points[-1][1]))
            points.append((points[-1][0], self.lane_y[card, source]))
        points.append((self.track_x(a, source), points[-1][1]))
        if a != b:
            channel = self.plan.channel_of(flow)
            y = self.track_y(channel, source)
            points.append((points[-1][0], y))
            points.append((self.track_x(b, source), y))
        end = self.port(target, "right" if target[0] == "group" else "left", ("to", source))
        return (*points, (points[-1][0], end[1]), end)
