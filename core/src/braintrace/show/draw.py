# SPDX-License-Identifier: Apache-2.0
"""A compiled graph as an SVG drawing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from math import dist

from .cards import HEIGHT, Item, make_cards, text_size
from .facts import Flow, Node, Summary
from .layout import Layout, Placed, Point
from .report import themed, totals
from .text import wrap

#: Width in pixels that a drawing does not exceed while a row holds more than one card.
WIDTH = 1240

RULES = """
.bt-graph {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
.bt-graph .paper {{ fill: {paper}; }}
.bt-graph .frame {{ fill: {frame}; stroke: {border}; }}
.bt-graph text {{ fill: {ink}; font-size: 12px; white-space: pre; }}
.bt-graph .fine {{ fill: {faint}; font-size: 10.5px; }}
.bt-graph .name {{ font-weight: bold; }}
.bt-graph .title {{ fill: {faint}; font-weight: bold; }}
.bt-graph .box rect, .bt-graph .legend rect {{ stroke-width: 1.3; }}
.bt-graph .relation rect {{ fill: {relation_fill}; stroke: {relation}; }}
.bt-graph .group rect {{ fill: {group_fill}; stroke: {group}; stroke-width: 2; }}
.bt-graph .excluded rect {{ fill: {grey_fill}; stroke: {grey}; stroke-dasharray: 4 2; }}
.bt-graph .frozen rect {{ fill: {grey_fill}; stroke: {grey}; }}
.bt-graph .excluded .name, .bt-graph .frozen .name {{ fill: {faint}; }}
.bt-graph .box rect.mark, .bt-graph .legend rect.mark {{ fill: {direct}; stroke: none; }}
.bt-graph .direct rect {{ fill: {direct_fill}; stroke: {direct}; }}
.bt-graph .unused rect, .bt-graph .state rect {{ fill: {warn_fill}; stroke: {warn}; }}
.bt-graph .zero .last, .bt-graph .warn {{ fill: {warn}; }}
.bt-graph .end rect {{ fill: {paper}; stroke: {input}; }}
.bt-graph .wire path {{ fill: none; stroke: currentColor; stroke-width: 1.4; }}
.bt-graph .wire .head {{ fill: currentColor; stroke: none; }}
.bt-graph .loop {{ fill: none; stroke: {group}; stroke-width: 1.6; }}
.bt-graph .loop-head {{ fill: {group}; }}
.bt-graph .from-input {{ color: {input}; }}
.bt-graph .from-relation {{ color: {relation}; }}
.bt-graph .from-new {{ color: {group}; }}
.bt-graph .from-old {{ color: {old}; }}
.bt-graph .from-other {{ color: {grey}; }}
.bt-graph .from-old path {{ stroke-dasharray: 6 3; }}
.bt-graph .no-credit path {{ stroke-dasharray: 1.5 3; }}
"""


@dataclass(frozen=True)
class Drawing:
    """An SVG drawing: ``str()`` is its text, :meth:`save` writes it, notebooks show it.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> drawing = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3))).draw()
    >>> str(drawing)[:4]
    '<svg'
    """

    svg: str

    def __str__(self) -> str:
        return self.svg

    _repr_svg_ = __str__

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the drawing to a file, as UTF-8."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)


def draw(summary: Summary, columns: int | None = None) -> Drawing:
    """Draw a summary; see ``ETraceGraph.draw``."""
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    cards = make_cards(summary)
    ends = _end("input", summary.inputs), _end("output", summary.outputs)
    for number in [columns] if columns else range(min(len(cards), 8), 0, -1):
        layout = Layout(cards, ends, summary.flows, number)
        if layout.width <= WIDTH:
            break
    return Drawing(_svg(layout, summary))


def _end(name: str, leaves: Sequence[str]) -> Item:
    shown = [*leaves[:4], *([f"and {len(leaves) - 4} more"] if len(leaves) > 4 else [])]
    lines = (("name", name), *(("fine", leaf) for leaf in shown))
    return Item((name, 0), "end", lines, f"{name}: {', '.join(leaves)}")


def _svg(layout: Layout, summary: Summary) -> str:
    width = max(layout.width, 420)
    head = wrap(totals(summary).split(), int((width - 24) / 6.35))
    top = 14 + 14 * len(head)
    traced = {op.eqn for op in summary.relations}
    looks = {flow: _look(flow, traced) for flow in summary.flows}
    boxes = [box.what.look for box in layout.boxes.values()]
    present = {word for look in (*boxes, *looks.values()) for word in look.split()}
    legend, below = _legend(present | ({"loop"} if "group" in boxes else set()), width)
    size = {"width": width, "height": top + layout.height + below + 8}
    parts = [
        _tag("title", "Hidden groups, and the operations that drive them"),
        f"<style>{themed(RULES)}\n</style>",
        _tag("rect", class_="paper", **size),
        *(_text(12, 18 + 14 * k, "fine", line) for k, line in enumerate(head)),
        f'<g transform="translate(0 {top})">',
        *map(_frame, layout.frames),
        *(_wire(flow, points, looks[flow]) for flow, points in layout.wires.items()),
        *_joints(layout.wires, looks),
        *map(_box, layout.boxes.values()),
        "</g>",
        f'<g transform="translate(0 {_number(top + layout.height)})">',
        *legend,
        "</g>",
    ]
    inner = "\n".join(["", *parts, ""])
    return _tag("svg", inner, xmlns="http://www.w3.org/2000/svg", class_="bt-graph", role="img",
                **size, viewBox=_at(0, 0, *size.values()))  # fmt: skip


def _tag(name: str, *inner: str, **attributes: object) -> str:
    """An element; ``inner`` is markup, ``class_`` and ``data_node`` are written as in SVG."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{given}>{''.join(inner)}</{name}>" if inner else f"<{name}{given}/>"


def _number(value: object) -> str:
    """A number with at most one digit behind the point; anything else as it is."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, (int, float)) else str(value)


def _at(*point: float, between: str = " ") -> str:
    return between.join(map(_number, point))


def _text(x: float, y: float, look: str, text: str) -> str:
    return _tag("text", escape(text), class_=look, x=x, y=y)


def _rect(x: float, y: float, width: float, height: float, rx: int, **look: str) -> str:
    return _tag("rect", **look, x=x, y=y, width=width, height=height, rx=rx)


def _head(look: str, *corners: Point) -> str:
    return _tag("polygon", class_=look, points=" ".join(_at(*p, between=",") for p in corners))


def _frame(frame: Placed) -> str:
    rect = _rect(frame.x, frame.y, frame.width, frame.height, 8, class_="frame")
    return _tag("g", rect, _text(frame.x + 12, frame.y + 19, "title", frame.what), class_="card")


def _box(box: Placed) -> str:
    item, inner = box.what, []
    if item.look == "group":  # the transition, from the old value to the new one
        x, y = box.x + box.width - 34, box.y
        inner.append(_tag("path", class_="loop", d=f"M{_at(x, y)} c0 -16 20 -16 20 -3"))
        inner.append(_head("loop-head", (x + 20, y), (x + 16, y - 7), (x + 24, y - 7)))
    round_ = 10 if item.look.startswith("group") else 4
    inner.append(_rect(box.x, box.y, box.width, box.height, round_))
    if "only-direct" in item.look:
        inner.append(_mark(box.x, box.y, box.height))
    y = box.y + (box.height - text_size(*item.lines)[1]) / 2
    for k, (look, text) in enumerate(item.lines, 1):
        y += HEIGHT[look]
        last = " last" if k == len(item.lines) else ""
        inner.append(_text(box.x + 9, y - 4, look + last, text))
    title, name = _tag("title", escape(item.tip)), "-".join(map(str, item.node))
    return _tag("g", title, *inner, class_=f"box {item.look}", data_node=name)


def _mark(x: float, y: float, height: float) -> str:
    """A strip on the left of a box: its parameters have the direct gradient alone."""
    return _rect(x - 1, y + 3, 4, height - 6, 2, class_="mark")


def _look(flow: Flow, traced: set[int]) -> str:
    """Where a wire comes from, and whether it carries credit, as classes of style."""
    kind, number = flow.source
    if kind == "op":
        kind = "relation" if number in traced else "other"
    known = kind if kind in ("input", "relation", "new", "old") else "other"
    return f"from-{known}" if flow.credit else f"from-{known} no-credit"


def _wire(flow: Flow, points: Sequence[Point], look: str) -> str:
    (fx, fy), (x, y) = points[-2:]
    dx, dy = (x > fx) - (x < fx), (y > fy) - (y < fy)
    left = x - 7 * dx - 4 * dy, y - 7 * dy - 4 * dx
    right = x - 7 * dx + 4 * dy, y - 7 * dy + 4 * dx
    line = _rounded([*points[:-1], (x - 5 * dx, y - 5 * dy)])
    nodes = (flow.source, flow.target)
    words = " enters ".join(WORDS.get(kind, f"the {kind}").format(k) for kind, k in nodes)
    words += "" if flow.credit else " (values only, no gradient)"
    parts = _tag("title", words), _tag("path", d=line), _head("head", (x, y), left, right)
    return _tag("g", *parts, class_=f"wire {look}")


#: What messages call a node.
WORDS = {
    "new": "the new value of group {}", "old": "the old value of group {}", "group": "group {}",
    "op": "operation {}", "plain": "parameter {}", "state": "state {}",
}  # fmt: skip


def _rounded(points: Sequence[Point], radius: float = 5) -> str:
    """A path with round corners."""
    corners = [point for point, _ in groupby(points)]
    parts = [f"M{_at(*corners[0])}"]
    for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
        near, far = _towards(b, a, radius), _towards(b, c, radius)
        parts.append(f"L{_at(*near)}Q{_at(*b, *far)}")
    return "".join([*parts, f"L{_at(*corners[-1])}"])


def _towards(a: Point, b: Point, step: float) -> Point:
    """A point on the way from ``a`` to ``b``, at most half of it away."""
    part = min(step / dist(a, b), 0.5)
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part


def _joints(wires: Mapping[Flow, Sequence[Point]], looks: Mapping[Flow, str]) -> Iterator[str]:
    """Dots where a wire branches, so that a crossing is not taken for one."""
    nets: dict[Node, list[Flow]] = {}
    for flow in wires:
        nets.setdefault(flow.source, []).append(flow)
    for net in nets.values():
        lines = [sorted(line) for flow in net for line in pairwise(wires[flow])]
        corners = sorted({p for flow in net for p in wires[flow][1:-1]})
        dots = [
            p
            for p in corners
            if any(a < p < b and (a[0] == p[0] == b[0] or a[1] == p[1] == b[1]) for a, b in lines)
        ]
        if dots:
            circles = (_tag("circle", class_="head", cx=x, cy=y, r=2.6) for x, y in dots)
            yield _tag("g", *circles, class_=f"wire {looks[net[0]]}")


BOXES = {
    "relation": "operation with a trace",
    "excluded": "operation without a trace",
    "only-direct": "direct gradient alone",
    "direct": "parameter used without an operation",
    "unused": "parameter without a gradient",
    "frozen": "frozen parameter",
    "state": "state that carries no credit",
    "group": "hidden group",
}
LINES = {
    "from-relation": "drives",
    "from-new": "new value",
    "from-old": "old value, of the step before",
    "no-credit": "values only, no gradient",
    "loop": "transition D of a group",
}


def _legend(present: set[str], width: float) -> tuple[list[str], float]:
    """What looks mean, in rows; and how high that is."""
    x, y, parts = 12.0, 10.0, []
    for look, text in (BOXES | LINES).items():
        if look in present:
            room = 30 + text_size(("fine", text))[0] + 18
            if x + room > width and x > 12:
                x, y = 12.0, y + 20
            parts.append(_sample(look, x, y) + _text(x + 30, y + 9, "fine", text))
            x += room
    return parts, y + 24


def _sample(look: str, x: float, y: float) -> str:
    if look == "loop":
        return _tag("path", class_="loop", d=f"M{_at(x + 3, y + 12)} c0 -16 16 -16 16 0")
    if look in LINES:
        kind = "from-other no-credit" if look == "no-credit" else look
        return _tag("g", _tag("path", d=f"M{_at(x, y + 6)}h22"), class_=f"wire {kind}")
    if look == "only-direct":
        return _tag("g", _mark(x + 10, y - 2, 16), class_="legend")
    return _tag("g", _rect(x, y, 22, 12, 3), class_=f"legend {look}")
