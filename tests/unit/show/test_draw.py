# SPDX-License-Identifier: Apache-2.0
"""The drawing of a compiled graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from braintrace.compiler.graph import summarize
from braintrace.show.text import short_sources
from tests.unit.show.graphs import GRAPHS, everything, of_zoo

SVG = "{http://www.w3.org/2000/svg}"
Rect = tuple[float, float, float, float]


def boxes(svg: str) -> dict[str, Rect]:
    """The boxes of a drawing by name: x, y, width, height."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if group.get("class", "").startswith("box "):
            rect = group.find(f"{SVG}rect")
            assert rect is not None
            found[group.get("data-node", "")] = tuple(
                float(rect.get(key, "nan")) for key in ("x", "y", "width", "height")
            )
    return found  # type: ignore[return-value]


def overlap(a: Rect, b: Rect) -> bool:
    return all(
        abs((2 * a[k] + a[k + 2]) - (2 * b[k] + b[k + 2])) < a[k + 2] + b[k + 2] for k in (0, 1)
    )


def lines(svg: str) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """The straight pieces of all wires."""
    root = ElementTree.fromstring(svg)
    for group in root.iter(f"{SVG}g"):
        path = group.find(f"{SVG}path")
        if group.get("class", "").startswith("wire") and group.find(f"{SVG}title") is not None:
            assert path is not None
            points = re.findall(
                r"[MLQ]([-\d.]+) ([-\d.]+)(?: ([-\d.]+) ([-\d.]+))?", path.get("d", "")
            )
            ends = [tuple(map(float, (p[2], p[3]) if p[2] else p[:2])) for p in points]
            starts = [tuple(map(float, p[:2])) for p in points]
            yield from zip(ends, starts[1:], strict=False)  # type: ignore[misc]


@pytest.mark.parametrize("columns_", [None, 1, 2, 5])
@pytest.mark.parametrize("name", GRAPHS)
def test_boxes_do_not_overlap_and_wires_cross_none(name: str, columns_: int | None) -> None:
    svg = str(GRAPHS[name]().draw(columns=columns_))
    placed = boxes(svg)
    for a, b in combinations(placed, 2):
        assert not overlap(placed[a], placed[b]), (a, b)
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    assert all(
        x >= 0 and x + w <= width and y >= 0 and y + h <= height for x, y, w, h in placed.values()
    )
    for (x1, y1), (x2, y2) in lines(svg):
        assert x1 == x2 or y1 == y2
        thin = (min(x1, x2), min(y1, y2), abs(x1 - x2), abs(y1 - y2))
        inside = [
            k for k, (x, y, w, h) in placed.items() if overlap(thin, (x + 1, y + 1, w - 2, h - 2))
        ]
        assert not inside


@pytest.mark.parametrize("name", GRAPHS)
def test_drawings_show_everything(name: str) -> None:
    graph = GRAPHS[name]()
    svg = str(graph.draw())
    placed, summary = boxes(svg), summarize(graph)
    assert {f"group-{g.index}" for g in graph.hidden_groups} <= set(placed)
    assert {f"op-{op.eqn}" for op in summary.operations} <= set(placed)
    assert {"input-0", "output-0"} <= set(placed)
    texts = {text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")}
    for group in graph.hidden_groups:
        assert f"group {group.index} {group.varshape} S={group.num_state}" in texts
    titles = [title.text or "" for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    sources = short_sources(op.source for op in summary.operations)
    for op in summary.operations:
        assert any(sources[op.source] in title and op.primitive in title for title in titles)
    for op in summary.excluded:
        assert any(op.reason and op.reason in title for title in titles)


def test_looks_of_a_drawing() -> None:
    root = ElementTree.fromstring(str(everything().draw()))
    looks = {
        g.get("data-node", ""): g.get("class") for g in root.iter(f"{SVG}g") if g.get("data-node")
    }
    assert sorted(filter(None, looks.values())) == [
        "box direct", "box end", "box end", "box excluded", "box excluded only-direct",
        "box frozen", "box group", "box relation", "box relation", "box state",
    ]  # fmt: skip
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {
        "reaches no hidden state",
        "gradient: direct",
        "no parameter",
        "parameter: frozen",
    } <= texts
    assert {"operation without a trace", "values only, no gradient"} <= texts  # in the legend


def test_text_is_escaped_and_light_and_dark_are_explicit() -> None:
    graph = GRAPHS["long-paths"]()
    svg = str(graph.draw())
    assert "&lt;深い&amp;層&gt;" in svg
    assert "<深い" not in svg
    assert "prefers-color-scheme: dark" in svg
    assert "url(" not in svg and "@import" not in svg


def test_drawings_can_be_saved_and_shown(tmp_path: Path) -> None:
    drawing = of_zoo("lif").draw()
    drawing.save(tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").read_text(encoding="utf-8") == str(drawing)
    assert drawing._repr_svg_() == str(drawing)


def test_columns_must_be_positive() -> None:
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        of_zoo("lif").draw(columns=0)
