# SPDX-License-Identifier: Apache-2.0
"""What stands in which box of a drawing: a card per hidden group with the operations that lead
to it, and cards of operations that belong to none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from ..base.types import Path, show_path
from .facts import GroupFacts, Node, OperationFacts, Summary
from .tables import why
from .text import Names, columns, listed, short_sources, wrap

#: Columns of a name, and of the small print under it.
NAME, FINE = 24, 30


@dataclass(frozen=True)
class Item:
    """A box: its place in the program, its look, lines ``(look, text)``, and a tooltip."""

    node: Node
    look: str
    lines: tuple[tuple[str, str], ...]
    tip: str


@dataclass(frozen=True)
class Card:
    """Boxes that stand together: operations on the left, a hidden group on the right."""

    title: str
    items: tuple[Item, ...]
    group: Item | None


@dataclass
class _Draft:
    """A card in the making; ``rank`` is where in the program its values are complete."""

    rank: int
    group: GroupFacts | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def layer(self) -> Path:
        """The path of the module that the states of the group belong to."""
        return _layer(self.group) if self.group else ()


def make_cards(summary: Summary) -> tuple[Card, ...]:
    """The cards in the order of the program."""
    return tuple(map(_Items(summary).card, _assigned(summary)))


def home(node: Node) -> Node:
    """The box that a source belongs to."""
    return ("group", node[1]) if node[0] in ("new", "old") else node


def _assigned(summary: Summary) -> list[_Draft]:
    """The cards in order; neighbours without a group become one."""
    drafts = {("group", g.index): _Draft(g.eqn, g) for g in summary.groups}
    of_node: dict[Node, _Draft] = dict(drafts)
    alone: list[_Draft] = []

    def put(node: Node, draft: _Draft | None, rank: int) -> None:
        if draft is None:
            alone.append(draft := _Draft(rank))
        of_node[node] = draft
        draft.nodes.append(node)

    last = 1 + max([g.eqn for g in summary.groups] + [op.eqn for op in summary.operations])
    for op in reversed(summary.operations):
        put(("op", op.eqn), _draft_of(summary, op, of_node), op.eqn)
    used = {node for flow in summary.flows for node in (flow.source, flow.target)}
    named = [node for node in summary.paths if node in used]
    shown = {path for op in summary.operations for path in op.parameters}
    shown |= {summary.paths[node] for node in named}
    unused = [("unused", k) for k, p in enumerate(summary.parameters) if p.path not in shown]
    for node in [*named, *unused]:  # plain parameters, carriers
        target = next((f.target for f in summary.flows if f.source == node), None)
        beside = of_node.get(target) if node[0] == "plain" and target else None
        put(node, beside, last)
    for draft in drafts.values():
        draft.nodes.sort(key=lambda node: (node[0] == "op", node[1]))
    found: list[_Draft] = []
    for draft in sorted([*drafts.values(), *alone], key=lambda d: (d.rank, d.group is None)):
        if found and draft.group is None and found[-1].group is None:
            found[-1].nodes.extend(draft.nodes)
        else:
            found.append(draft)
    return found


def _draft_of(summary: Summary, op: OperationFacts, of_node: dict[Node, _Draft]) -> _Draft | None:
    """The card of the group that an operation drives, or of an operation that it only feeds."""
    driven = [of_node["group", g] for g in op.groups]
    if driven:
        return max(
            driven, key=lambda d: max((_common(d.layer, p) for p in op.parameters), default=0)
        )
    node = ("op", op.eqn)
    old = {f.source for f in summary.flows if f.target == node}
    fed = [of_node.get(f.target) for f in summary.flows if f.source == node]
    for draft in fed:
        if draft is not None and draft.group is not None:
            inside = any(path[: len(draft.layer)] == draft.layer for path in op.parameters)
            if inside or ("old", draft.group.index) in old or not op.parameters:
                return draft
    return None


def _common(a: Path, b: Path) -> int:
    """How many parts two paths have in common."""
    return sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], zip(a, b, strict=False)))


def _layer(group: GroupFacts) -> Path:
    """The path of the module that a group's states belong to."""
    first = group.states[0][:-1]
    return first[: min(_common(first, path) for path in group.states)]


class _Items:
    """Makes the boxes of one summary."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.operations = {op.eqn: op for op in summary.operations}
        self.sources = short_sources(op.source for op in summary.operations)
        self.gradients = {p.path: p.gradient for p in summary.parameters}
        layers = [_layer(group) for group in summary.groups]
        self.names = Names.of([*self.gradients, *summary.paths.values(), *layers])

    def card(self, draft: _Draft) -> Card:
        layer = draft.layer
        items = tuple(self.item(node, layer) for node in draft.nodes)
        if draft.group is None:
            return Card("without a trace", items, None)
        title = self.names.short(layer, NAME + 10) or "model"
        return Card(title, items, self.group(draft.group, layer))

    def item(self, node: Node, layer: Path) -> Item:
        if node[0] == "op":
            return self.operation(self.operations[node[1]], layer)
        if node[0] == "unused":
            parameter = self.summary.parameters[node[1]]
            path, fine = parameter.path, f"parameter: {parameter.gradient}"
            tip = f": gradient {parameter.gradient}"
            look = "frozen" if parameter.gradient == "frozen" else "unused"
        elif node[0] == "state":
            path, look, fine = self.summary.paths[node], "state", "state: carries no credit"
            tip = " keeps hidden values, but it is not a HiddenState"
        else:
            path, look, fine = self.summary.paths[node], "direct", "parameter, plainly: direct"
            tip = " is used without an ETP operation"
        return Item(node, look, self.lines([path], layer, fine), show_path(path) + tip)

    def operation(self, op: OperationFacts, layer: Path) -> Item:
        shapes = " + ".join("×".join(map(str, s)) or "scalar" for s in op.shapes)
        number = "" if op.relation is None else f"#{op.relation} "
        fine = [f"{number}{op.primitive} {shapes}".strip()]
        gradients = sorted({self.gradients.get(path, "none") for path in op.parameters})
        look, drives = (
            "relation",
            f"relation {op.relation}, drives {', '.join(map(str, op.groups))}",
        )
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

    def group(self, group: GroupFacts, layer: Path) -> Item:
        transition = "D = 0" if group.transition == "zero" else f"D {group.transition}"
        fine = [f"group {group.index} {group.positions} S={group.num_state}", transition]
        units = sorted({unit for unit in group.units if unit})
        fine += [f"unit {', '.join(units)}"] if units else []
        names = ", ".join(map(show_path, group.states))
        tip = f"hidden group {group.index}: {names}\ntransition D: {group.transition}"
        look = {"zero": "group zero", "not needed": "group idle"}.get(group.transition, "group")
        return Item(("group", group.index), look, self.lines(group.states, layer, *fine), tip)

    def lines(self, paths: Sequence[Path], layer: Path, *fine: str) -> tuple[tuple[str, str], ...]:
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


def text_width(lines: Iterable[tuple[str, str]]) -> int:
    """The width of the widest line, in pixels."""
    return max((round(columns(text) * ADVANCE[look]) for look, text in lines), default=0)


#: Width of a column and height of a line, in pixels, of names and of small print.
ADVANCE = {"name": 7.25, "fine": 6.35}
HEIGHT = {"name": 16, "fine": 14}


def text_height(lines: Iterable[tuple[str, str]]) -> int:
    """The height of some lines, in pixels."""
    return sum(HEIGHT[look] for look, _ in lines)
