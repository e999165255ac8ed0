# SPDX-License-Identifier: Apache-2.0
"""A compiled graph as an SVG drawing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .cards import HEIGHT, Item, make_cards, text_height, text_width
from .facts import Summary
from .layout import Box, Frame, Layout, Point, Wire, lay_out
from .tables import totals
from .text import wrap

#: Width in pixels that a drawing does not exceed while a row holds more than one card.
WIDTH = 1240

LIGHT = {
    "paper": "#ffffff", "frame": "#f4f5f7", "border": "#d5d9e0", "ink": "#1c2330",
    "faint": "#5a6473", "relation": "#0f7b6c", "relation-fill": "#e0f3ef", "group": "#2257c4",
    "group-fill": "#e3ecfd", "grey": "#8a93a1", "grey-fill": "#e9ebee", "direct": "#9a6700",
    "direct-fill": "#fdf3d8", "warn": "#c0392b", "warn-fill": "#fde8e4", "old": "#8040b0",
    "input": "#4a5568",
}  # fmt: skip
DARK = {
    "paper": "#14171c", "frame": "#1d2127", "border": "#39404a", "ink": "#e6e9ee",
    "faint": "#a3adbb", "relation": "#4cc3ae", "relation-fill": "#12352f", "group": "#7aa7ff",
    "group-fill": "#182a4d", "grey": "#8a93a1", "grey-fill": "#2a2f36", "direct": "#e0b341",
    "direct-fill": "#3a2f10", "warn": "#ff8a7a", "warn-fill": "#421d18", "old": "#c58cf0",
    "input": "#b4bfce",
}  # fmt: skip

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
.bt-graph .wire path {{ fill: none; stroke-width: 1.4; }}
.bt-graph .loop {{ fill: none; stroke: {group}; stroke-width: 1.6; }}
.bt-graph .loop-head {{ fill: {group}; }}
.bt-graph .from-input path {{ stroke: {input}; }}
.bt-graph .from-input .head {{ fill: {input}; }}
.bt-graph .from-relation path {{ stroke: {relation}; }}
.bt-graph .from-relation .head {{ fill: {relation}; }}
.bt-graph .from-new path {{ stroke: {group}; }}
.bt-graph .from-new .head {{ fill: {group}; }}
.bt-graph .from-old path {{ stroke: {old}; stroke-dasharray: 6 3; }}
.bt-graph .from-old .head {{ fill: {old}; }}
.bt-graph .from-other path {{ stroke: {grey}; }}
.bt-graph .from-other .head {{ fill: {grey}; }}
.bt-graph .no-credit path {{ stroke-dasharray: 1.5 3; }}
.bt-graph .wire .head {{ stroke: none; }}
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

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the drawing to a file, as UTF-8."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)


def draw(summary: Summary, columns: int | None = None) -> Drawing:
    """Draw a summary.

    Parameters
    ----------
    summary
        What is shown.
    columns
        How many cards stand in a row; ``None``: as many as keep the drawing readable on a page.

    Raises
    ------
    ValueError
        When ``columns`` is not positive.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return Drawing(_svg(_layout(summary, columns), summary))


def _layout(summary: Summary, columns: int | None) -> Layout:
    cards = make_cards(summary)
    ends = _end("input", summary.inputs), _end("output", summary.outputs)
    wanted = [columns] if columns else range(min(len(cards), 8), 0, -1)
    for number in wanted:
        layout = lay_out(cards, ends, summary.flows, number)
        if layout.width <= WIDTH:
            break
    return layout


def _end(name: str, leaves: Sequence[str]) -> Item:
    shown = [*leaves[:4], *([f"and {len(leaves) - 4} more"] if len(leaves) > 4 else [])]
    lines = (("name", name), *(("fine", leaf) for leaf in shown))
    return Item((name, 0), "end", lines, f"{name}: {', '.join(leaves)}")


# --- text of the SVG --------------------------------------------------------------------------


def _svg(layout: Layout, summary: Summary) -> str:
    width = max(layout.width, 420)
    head = wrap(totals(summary).split(), int((width - 24) / 6.35))
    top = 14 + 14 * len(head)
    legend, below = _legend(_present(layout, summary), width)
    height = top + layout.height + below + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bt-graph" role="img" '
        f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}">',
        "<title>Hidden groups, and the operations that drive them</title>",
        f"<style>{_style()}</style>",
        f'<rect class="paper" width="{_n(width)}" height="{_n(height)}"/>',
        *(_text(12, 18 + 14 * k, "fine", line) for k, line in enumerate(head)),
        f'<g transform="translate(0 {top})">',
        *(_frame(frame) for frame in layout.frames),
        *(_wire(wire, summary) for wire in layout.wires),
        *_joints(layout.wires, summary),
        *(_box(box) for box in layout.boxes),
        "</g>",
        f'<g transform="translate(0 {_n(top + layout.height)})">',
        *legend,
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts)


def _style() -> str:
    light, dark = (
        RULES.format(**{key.replace("-", "_"): value for key, value in colours.items()})
        for colours in (LIGHT, DARK)
    )
    return f"{light}@media (prefers-color-scheme: dark) {{{dark}}}\n"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, look: str, text: str) -> str:
    return f'<text class="{look}" x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _frame(frame: Frame) -> str:
    place = f'x="{_n(frame.x)}" y="{_n(frame.y)}"'
    size = f'width="{_n(frame.width)}" height="{_n(frame.height)}"'
    title = _text(frame.x + 12, frame.y + 19, "title", frame.title)
    return f'<g class="card"><rect class="frame" {place} {size} rx="8"/>{title}</g>'


def _box(box: Box) -> str:
    name = "-".join(map(str, box.item.node))
    rect = (
        f'<rect x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" '
        f'height="{_n(box.height)}" rx="{10 if box.item.look.startswith("group") else 4}"/>'
    )
    y = box.y + (box.height - text_height(box.item.lines)) / 2
    lines = []
    for k, (look, text) in enumerate(box.item.lines):
        y += HEIGHT[look]
        last = " last" if k == len(box.item.lines) - 1 else ""
        lines.append(_text(box.x + 9, y - 4, look + last, text))
    loop = _loop(box) if box.item.look == "group" else ""
    mark = _mark(box.x, box.y, box.height) if "only-direct" in box.item.look else ""
    return (
        f'<g class="box {box.item.look}" data-node="{escape(name)}"><title>{escape(box.item.tip)}'
        f"</title>{loop}{rect}{mark}{''.join(lines)}</g>"
    )


def _mark(x: float, y: float, height: float) -> str:
    """A strip on the left of a box: its parameters have the direct gradient alone."""
    place = f'x="{_n(x - 1)}" y="{_n(y + 3)}" height="{_n(height - 6)}"'
    return f'<rect class="mark" {place} width="4" rx="2"/>'


def _loop(box: Box) -> str:
    """The transition: from the group's old value to its new one."""
    x, y = box.x + box.width - 34, box.y
    path = f"M{_n(x)} {_n(y)} c0 -16 20 -16 20 -3"
    head = f"{_n(x + 20)},{_n(y)} {_n(x + 16)},{_n(y - 7)} {_n(x + 24)},{_n(y - 7)}"
    return f'<path class="loop" d="{path}"/><polygon class="loop-head" points="{head}"/>'


def _look(wire: Wire, summary: Summary) -> str:
    kind = wire.flow.source[0]
    traced = {op.eqn for op in summary.relations}
    if kind == "op":
        kind = "relation" if wire.flow.source[1] in traced else "other"
    look = f"from-{kind if kind in ('input', 'relation', 'new', 'old') else 'other'}"
    return look if wire.flow.credit else f"{look} no-credit"


def _wire(wire: Wire, summary: Summary) -> str:
    (x, y), (fx, fy) = wire.points[-1], wire.points[-2]
    dx, dy = _sign(x - fx), _sign(y - fy)
    tip = [
        (x, y),
        (x - 7 * dx - 4 * dy, y - 7 * dy - 4 * dx),
        (x - 7 * dx + 4 * dy, y - 7 * dy + 4 * dx),
    ]
    head = " ".join(f"{_n(a)},{_n(b)}" for a, b in tip)
    line = _rounded([*wire.points[:-1], (x - 5 * dx, y - 5 * dy)])
    words = f"{_words(wire.flow.source)} enters {_words(wire.flow.target)}"
    words += "" if wire.flow.credit else " (values only, no gradient)"
    return (
        f'<g class="wire {_look(wire, summary)}"><title>{escape(words)}</title>'
        f'<path d="{line}"/><polygon class="head" points="{head}"/></g>'
    )


def _words(node: tuple[str, int]) -> str:
    kind, number = node
    return {
        "new": f"the new value of group {number}",
        "old": f"the old value of group {number}",
        "group": f"group {number}",
        "op": f"operation {number}",
        "plain": f"parameter {number}",
        "state": f"state {number}",
    }.get(kind, f"the {kind}")


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _rounded(points: Sequence[Point], radius: float = 5) -> str:
    """A path with round corners."""
    corners = [p for k, p in enumerate(points) if k == 0 or p != points[k - 1]]
    parts = [f"M{_n(corners[0][0])} {_n(corners[0][1])}"]
    for a, b, c in zip(corners, corners[1:], corners[2:], strict=False):
        near, far = _towards(b, a, radius), _towards(b, c, radius)
        parts.append(
            f"L{_n(near[0])} {_n(near[1])}Q{_n(b[0])} {_n(b[1])} {_n(far[0])} {_n(far[1])}"
        )
    parts.append(f"L{_n(corners[-1][0])} {_n(corners[-1][1])}")
    return "".join(parts)


def _towards(a: Point, b: Point, step: float) -> Point:
    """A point on the way from ``a`` to ``b``, at most half of it away."""
    length = abs(b[0] - a[0]) + abs(b[1] - a[1])
    part = min(step, length / 2) / length if length else 0
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part


def _joints(wires: Sequence[Wire], summary: Summary) -> Iterator[str]:
    """Dots where a wire branches, so that a crossing is not taken for one."""
    nets: dict[object, list[Wire]] = {}
    for wire in wires:
        nets.setdefault(wire.flow.source, []).append(wire)
    for same in nets.values():
        lines = [(a, b) for w in same for a, b in zip(w.points, w.points[1:], strict=False)]
        corners = sorted({p for wire in same for p in wire.points[1:-1]})
        dots = [p for p in corners if any(_within(p, a, b) for a, b in lines)]
        if dots:
            circles = "".join(
                f'<circle class="head" cx="{_n(x)}" cy="{_n(y)}" r="2.6"/>' for x, y in dots
            )
            yield f'<g class="wire {_look(same[0], summary)}">{circles}</g>'


def _within(p: Point, a: Point, b: Point) -> bool:
    """Whether ``p`` is inside a horizontal or vertical line from ``a`` to ``b``."""
    if p[0] == a[0] == b[0]:
        return min(a[1], b[1]) < p[1] < max(a[1], b[1])
    return p[1] == a[1] == b[1] and min(a[0], b[0]) < p[0] < max(a[0], b[0])


# --- legend -----------------------------------------------------------------------------------

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
}


def _legend(present: set[str], width: float) -> tuple[list[str], float]:
    """What looks mean, in rows; and how high that is."""
    x, y, parts = 12.0, 10.0, []
    for look, text in (BOXES | LINES | {"loop": "transition D of a group"}).items():
        if look not in present:
            continue
        room = 30 + text_width([("fine", text)]) + 18
        if x + room > width and x > 12:
            x, y = 12.0, y + 20
        parts.append(_sample(look, x, y) + _text(x + 30, y + 9, "fine", text))
        x += room
    return parts, y + 24


def _present(layout: Layout, summary: Summary) -> set[str]:
    """The looks that occur in a drawing."""
    looks = {word for box in layout.boxes for word in box.item.look.split()}
    looks |= {word for wire in layout.wires for word in _look(wire, summary).split()}
    loops = any(box.item.look == "group" for box in layout.boxes)
    return looks | ({"loop"} if loops else set())


def _sample(look: str, x: float, y: float) -> str:
    if look == "only-direct":
        return f'<g class="legend">{_mark(x + 10, y - 2, 16)}</g>'
    if look in BOXES:
        rect = f'<rect x="{_n(x)}" y="{_n(y)}" width="22" height="12" rx="3"/>'
        return f'<g class="legend {look}">{rect}</g>'
    if look == "loop":
        path = f"M{_n(x + 3)} {_n(y + 12)} c0 -16 16 -16 16 0"
        return f'<path class="loop" d="{path}"/>'
    kind = "from-other no-credit" if look == "no-credit" else look
    return f'<g class="wire {kind}"><path d="M{_n(x)} {_n(y + 6)}h22"/></g>'
