# SPDX-License-Identifier: Apache-2.0
"""What stands in which box of a drawing: a card per hidden group with the operations that lead
to it, and cards of operations that belong to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from ..base.types import Path, show_path
from .facts import GroupFacts, Node, OperationFacts, Summary
from .report import why
from .text import Names, columns, listed, short_sources, wrap

#: Columns of a name, and of the small print under it.
NAME, FINE = 24, 30

#: Width of a column and height of a line, in pixels, of names and of small print.
ADVANCE = {"name": 7.25, "fine": 6.35}
HEIGHT = {"name": 16, "fine": 14}

Line = tuple[str, str]
"""Its look, ``name`` or ``fine``, and its text."""


def text_size(*lines: Line) -> tuple[int, int]:
    """The width of the widest line and the height of all, in pixels."""
    width = max((round(columns(text) * ADVANCE[look]) for look, text in lines), default=0)
    return width, sum(HEIGHT[look] for look, _ in lines)


@dataclass(frozen=True)
class Item:
    """A box: its place in the program, its look, its text, and a tooltip."""

    node: Node
    look: str
    lines: tuple[Line, ...]
    tip: str


@dataclass
class Card:
    """Boxes that stand together: operations on the left, a hidden group on the right.

    ``rank`` is where in the program its values are complete, ``layer`` the path of the module that
    the states of the group belong to.
    """

    rank: int
    layer: Path = ()
    title: str = "without a trace"
    group: Item | None = None
    items: list[Item] = field(default_factory=list)


def make_cards(summary: Summary) -> list[Card]:
    """The cards in the order of the program; neighbours without a group become one."""
    boxes = _Boxes(summary)
    of_node = {("group", group.index): boxes.card(group) for group in summary.groups}
    cards = [*of_node.values()]

    def card_at(node: Node, card: Card | None, rank: int) -> Card:
        if card is None:
            cards.append(card := Card(rank))
        of_node[node] = card
        return card

    last = 1 + max([card.rank for card in cards] + [op.eqn for op in summary.operations])
    for op in reversed(summary.operations):
        card = card_at(("op", op.eqn), _card_of(summary, op, of_node), op.eqn)
        card.items.append(boxes.operation(op, card.layer))
    used = {node for flow in summary.flows for node in (flow.source, flow.target)}
    named = [node for node in summary.paths if node in used]
    shown = {path for op in summary.operations for path in op.parameters}
    shown |= {summary.paths[node] for node in named}
    unused = [("unused", k) for k, p in enumerate(summary.parameters) if p.path not in shown]
    for node in [*named, *unused]:  # plain parameters, carriers
        target = next((f.target for f in summary.flows if f.source == node), None)
        card = card_at(node, of_node.get(target) if node[0] == "plain" and target else None, last)
        card.items.append(boxes.other(node, card.layer))
    found: list[Card] = []
    for card in sorted(cards, key=lambda card: (card.rank, card.group is None)):
        if card.group is not None:
            card.items.sort(key=lambda item: (item.node[0] == "op", item.node[1]))
        if found and card.group is None and found[-1].group is None:
            found[-1].items += card.items
        else:
            found.append(card)
    return found


def _card_of(summary: Summary, op: OperationFacts, of_node: Mapping[Node, Card]) -> Card | None:
    """The card of the group that an operation drives, or of an operation that it only feeds."""

    def nearness(card: Card) -> int:
        return max((len(_common(card.layer, path)) for path in op.parameters), default=0)

    if op.groups:
        return max((of_node["group", g] for g in op.groups), key=nearness)
    node = ("op", op.eqn)
    old = {f.source for f in summary.flows if f.target == node}
    for card in [of_node.get(f.target) for f in summary.flows if f.source == node]:
        if card is not None and card.group is not None:
            inside = any(path[: len(card.layer)] == card.layer for path in op.parameters)
            if inside or ("old", card.group.node[1]) in old or not op.parameters:
                return card
    return None


def _common(*paths: Path) -> Path:
    """The first parts of some paths, as far as all have the same."""
    same = takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))
    return tuple(parts[0] for parts in same)


def _layer(group: GroupFacts) -> Path:
    return _common(group.states[0][:-1], *group.states)


class _Boxes:
    """Makes the boxes of one summary."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.sources = short_sources(op.source for op in summary.operations)
        self.gradients = {p.path: p.gradient for p in summary.parameters}
        self.names = Names([*self.gradients, *summary.paths.values(), *map(_layer, summary.groups)])

    def card(self, group: GroupFacts) -> Card:
        """The card of a group, with its box."""
        layer = _layer(group)
        transition = "D = 0" if group.transition == "zero" else f"D {group.transition}"
        fine = [f"group {group.index} {group.positions} S={group.num_state}", transition]
        units = sorted({unit for unit in group.units if unit})
        fine += [f"unit {', '.join(units)}"] if units else []
        for one in self.summary.credit:
            if {*one.above} & {*group.states}:
                of = ", ".join(self.relative(path, layer) for path in one.below) or "the input"
                fine.append(f"credit of {of} {'stops' if one.stops else 'passes'}")
        names = ", ".join(map(show_path, group.states))
        tip = f"hidden group {group.index}: {names}\ntransition D: {group.transition}"
        look = {"zero": "group zero", "not needed": "group idle"}.get(group.transition, "group")
        box = Item(("group", group.index), look, self.lines(group.states, layer, *fine), tip)
        return Card(group.eqn, layer, self.names.short(layer, NAME + 10) or "model", box)

    def operation(self, op: OperationFacts, layer: Path) -> Item:
        shapes = " + ".join("×".join(map(str, s)) or "scalar" for s in op.shapes)
        number = "" if op.relation is None else f"#{op.relation} "
        fine = [f"{number}{op.primitive} {shapes}".strip()]
        gradients = sorted({self.gradients.get(path, "none") for path in op.parameters})
        drives = f"relation {op.relation}, drives {', '.join(map(str, op.groups))}"
        look = "relation"
        if op.relation is None:
            look, drives = "excluded", ""
            fine = [*(fine if op.parameters else []), why(op, brief=True)]
        if gradients not in (["trace"], []):
            fine.append(f"gradient: {', '.join(gradients)}")
        if gradients and all(how.startswith("direct") for how in gradients):
            look += " only-direct"
        paths = ", ".join(map(show_path, op.parameters)) or "no parameter"
        tip = (f"{op.primitive}({paths})", drives, op.reason, self.sources[op.source])
        lines = self.lines(op.parameters or [(op.primitive,)], layer, *fine)
        return Item(("op", op.eqn), look, lines, "\n".join(filter(None, tip)))

    def other(self, node: Node, layer: Path) -> Item:
        """The box of a parameter without an operation, or of a state that is not hidden."""
        kind, number = node
        if kind == "unused":
            path, gradient = (p := self.summary.parameters[number]).path, p.gradient
            look = "frozen" if gradient == "frozen" else "unused"
            fine, tip = f"parameter: {gradient}", f": gradient {gradient}"
        elif kind == "state":
            path, look, fine = self.summary.paths[node], "state", "state: carries no credit"
            tip = " keeps hidden values, but it is not a HiddenState"
        else:
            path, look, fine = self.summary.paths[node], "direct", "parameter, plainly: direct"
            tip = " is used without an ETP operation"
        return Item(node, look, self.lines([path], layer, fine), show_path(path) + tip)

    def lines(self, paths: Sequence[Path], layer: Path, *fine: str) -> tuple[Line, ...]:
        """The names inside a layer, and small print."""
        words = listed(self.relative(path, layer) for path in paths)
        print_ = [line for text in fine for line in wrap(text.split(" "), FINE)]
        return (*(("name", line) for line in wrap(words, NAME)), *(("fine", t) for t in print_))

    def relative(self, path: Path, layer: Path) -> str:
        """A path of the card's layer as ``.Wz.weight``, another one in full."""
        if len(path) > len(layer) and path[: len(layer)] == layer:
            own = path[len(layer) :]
            return ("." if layer and isinstance(own[0], str) else "") + show_path(own)
        return self.names.short(path, NAME)
