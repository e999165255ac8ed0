# SPDX-License-Identifier: Apache-2.0
"""The report, the drawing and the notebook view of a compiled graph."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace as bt
from braintrace.base.types import show_path
from braintrace.compiler.graph import summarize
from braintrace.show.facts import to_data
from braintrace.show.report import Cell, fold_rows
from braintrace.show.text import Names, columns, numbers, short_sources, wrap
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

SVG = "{http://www.w3.org/2000/svg}"
Rect = tuple[float, float, float, float]


def compiled(model: Any, *args: Any, batch: int | None = 2, **options: Any) -> Any:
    brainstate.nn.init_all_states(model, batch_size=batch)
    return bt.compile_etrace_graph(model, *args, **options)


def of_zoo(name: str) -> Any:
    case = zoo.case(name, 2, steps=1)
    return bt.compile_etrace_graph(case.model, case.xs[0])


def stack(cell: Any, layers: int) -> Any:
    cells = [cell(IN if k == 0 else HIDDEN, HIDDEN) for k in range(layers)]
    model = brainstate.nn.Sequential(*cells, bt.nn.Linear(HIDDEN, 2))
    return compiled(model, jnp.ones((2, IN)))


class Wrapped(brainstate.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.an_attribute_with_quite_a_long_name = inner

    def update(self, x: Any) -> Any:
        return self.an_attribute_with_quite_a_long_name(x)


class LongPaths(brainstate.nn.Module):
    """Long, unicode and integer parts of paths."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Wrapped(Wrapped(bt.nn.GRUCell(HIDDEN, HIDDEN))) for _ in range(2)]
        self.populations_of_the_primary_area = {
            "größe": blocks,
            "<深い&層>": bt.nn.GRUCell(IN, HIDDEN),
        }

    def update(self, x: Any) -> Any:
        x = self.populations_of_the_primary_area["<深い&層>"](x)
        for block in self.populations_of_the_primary_area["größe"]:
            x = block(x)
        return x


class Everything(zoo.Leaky):
    """Excluded, plain and frozen parameters, a carrier, a stopped gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = weight(HIDDEN, HIDDEN), weight(HIDDEN, 2)
        self.bias, self.idle = weight(HIDDEN), weight(3)

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state(batch_size)
        self.delay = brainstate.ShortTermState(self.start(batch_size))

    def update(self, x: Any) -> Any:
        late, old = self.delay.value, self.h.value
        self.delay.value = old
        stopped = bt.matmul(jax.lax.stop_gradient(old), jnp.eye(HIDDEN))
        drive = bt.matmul(x, self.w.value) + bt.matmul(jnp.tanh(late), self.mix.value)
        self.h.value = 0.8 * old + drive + stopped + self.bias.value
        return bt.matmul(self.h.value, self.out.value)


class FanOut(brainstate.nn.Module):
    """One operation drives two groups, and two weights have the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.layers = [zoo.Leaky(), zoo.Leaky()]
        self.layers[1].w = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        shared = bt.matmul(x, self.w.value)
        for layer in self.layers:
            layer.h.value = 0.5 * layer.h.value + bt.matmul(x, layer.w.value) + shared
            x = layer.h.value
        return x


def everything() -> Any:
    return compiled(Everything(), jnp.ones((2, IN)), frozen=["idle"])


GRAPHS = {
    "everything": everything,
    "fan-out": lambda: compiled(FanOut(), jnp.ones((2, IN))),
    "long-paths": lambda: compiled(LongPaths(), jnp.ones((2, IN))),
    "gru-20": lambda: stack(bt.nn.GRUCell, 20),
    "lstm-4": lambda: stack(bt.nn.LSTMCell, 4),
    **{
        name: (lambda name=name: of_zoo(name))
        for name in (
            "lif", "top-down", "residual", "partial-path", "used-twice", "plain-parameters",
            "learned-leak", "delayed", "nested", "group-state", "transposed", "direct",
        )
    },
}  # fmt: skip


# --- the report -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_reports_fit_into_a_terminal_and_name_everything(name: str) -> None:
    graph = GRAPHS[name]()
    text = graph.report(width=80, fold=False)
    assert max(map(columns, text.splitlines())) <= 80
    squeezed = re.sub(r"\s", "", text)
    for relation in graph.hidden_param_op_relations:
        assert relation.primitive.name in text
    for how in graph.coverage().values():
        assert ("frozen" if how == "none" else how) in squeezed
    if name != "long-paths":
        for path in (*graph.coverage(), *graph.hid_path_to_group):
            assert show_path(path) in squeezed


def test_every_section_of_a_report() -> None:
    report = everything().report(width=100)
    titles = ["Hidden groups", "Relations", "Parameters", "Operations without a trace", "Warnings"]
    places = [report.index(title) for title in titles]
    assert places == sorted(places)
    for text in (
        "(2, 4)", "position-wise", "axis by axis", "float64[3,4]", "trace", "direct", "frozen",
        "reaches no hidden state", "has no parameter", "credit_through_other_state",
        "test_draw.py:",
    ):  # fmt: skip
        assert text in report
    assert report.splitlines()[-1].endswith("warnings")
    assert "1 hidden group of 1 state" in " ".join(report.split())
    assert str(Path(__file__).parent) not in report.split("Warnings")[0]


def test_layers_that_are_alike_share_a_row() -> None:
    graph = stack(bt.nn.LSTMCell, 20)
    report = graph.report(width=80)
    assert len(report.splitlines()) < 50
    for text in ("layers[0-19].h", "layers[1-19].Wi.weight", "4, 8, …, 76", "0-19"):
        assert text in report
    assert "layers[7].Wi.weight" in graph.report(width=80, fold=False)


def test_warnings_that_are_alike_are_told_once() -> None:
    graph = stack(lambda a, b: bt.nn.ValinaRNNCell(a, b, activation="tanh"), 6)
    report = " ".join(graph.report(width=80).split())
    assert report.count("D is structurally zero") == 1
    assert "5 more like this: layers[1-5].h" in report
    assert re.search(r"0-5 layers\[0-5\]\.h \(2, 4\) 1 zero", report)


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_transitions_are_named(scope: str) -> None:
    class Rolled(zoo.Leaky):
        def update(self, x: Any) -> Any:
            old = self.h.value
            drive = bt.matmul(jnp.concatenate([x, old], -1), self.w.value)
            self.h.value = 0.5 * old + 0.1 * old.sum(-1, keepdims=True) + drive
            return self.h.value

    model = Rolled()
    model.w = weight(IN + HIDDEN, HIDDEN)
    graph = compiled(model, jnp.ones((2, IN)), recurrence_scope=scope)
    expected = {"diagonal": "true diagonal", "coupled": "coupled diagonal"}[scope]
    assert expected in graph.report()
    assert f"D {expected}" in str(graph.draw())


def test_units_are_shown() -> None:
    class Neuron(zoo.Leaky):
        def start(self, batch_size: int | None) -> Any:
            return super().start(batch_size) * u.mV

        def update(self, x: Any) -> Any:
            self.h.value = 0.5 * self.h.value + bt.matmul(x, self.w.value)
            return self.h.value / u.mV

    model = Neuron()
    model.w = brainstate.ParamState(weight(IN, HIDDEN).value * u.mV)
    graph = compiled(model, jnp.ones((2, IN)))
    assert "float64[3,4] mV" in graph.report()
    assert "unit mV" in str(graph.draw())


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = everything()
    monkeypatch.setenv("COLUMNS", "72")
    assert graph.report() == graph.report(width=72) != graph.report(width=100)


def test_telling_parts_of_paths_are_never_left_out() -> None:
    paths = [("net", "encoder", "blocks", k, "attention", "query", "weight") for k in range(20)]
    names = Names(paths)
    short = [names.short(path, 20) for path in paths]
    assert len(set(short)) == 20
    assert short[7] == "net…[7]…weight"
    assert names.short(paths[7], 100) == "net.encoder.blocks[7].attention.query.weight"


def test_wide_characters_take_two_columns() -> None:
    assert [columns(text) for text in ("größe", "深い", "e\u0301")] == [5, 4, 1]
    assert wrap(["深い層深い層", "a"], 6) == ["深い層", "深い層", "a"]


def test_numbers_and_sources_are_short() -> None:
    assert [numbers(n) for n in ([3], [1, 4], [0, 1, 2, 3], [1, 5, 9, 13])] == [
        "3", "1, 4", "0-3", "1, 5, …, 13",
    ]  # fmt: skip
    sources = [
        "/a/b/net.py:3:4 (Net.update)",
        "/a/c/net.py:9:1 (f.<locals>.g)",
        "/a/c/x.py:1:1",
        "",
    ]
    assert list(short_sources(sources).values()) == [
        "b/net.py:3:4 (Net.update)", "c/net.py:9:1 (g)", "x.py:1:1", "",
    ]  # fmt: skip


def test_rows_fold_only_where_they_are_alike() -> None:
    rows = [(Cell(paths=(("a", k, "w"),)), Cell("x" if k != 5 else "y")) for k in range(10)]
    folded = fold_rows(rows)
    assert [f"{row[0].paths[0][1]}" for row in folded] == ["0-4", "5", "6-9"]
    uneven = [(Cell(paths=(("a", k),)), Cell(numbers=(k * k,))) for k in range(6)]
    assert fold_rows(uneven) == tuple(uneven)


# --- the drawing ------------------------------------------------------------------------------


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


def test_flows_say_which_values_enter_an_operation() -> None:
    lif = summarize(of_zoo("lif"))
    w, rec = lif.operations
    sources = {flow.target: [] for flow in lif.flows}
    for flow in lif.flows:
        sources[flow.target].append(flow.source)
    assert sources["op", w.eqn] == [("input", 0)]
    assert sources["op", rec.eqn] == [("old", 0)]
    assert sources["group", 0] == [("op", w.eqn), ("op", rec.eqn)]
    assert sources["output", 0] == [("new", 0)]
    stopped = [flow for flow in summarize(everything()).flows if not flow.credit]
    assert [(f.source, f.target[0]) for f in stopped] == [(("old", 0), "op")]


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


# --- notebooks and data -----------------------------------------------------------------------


def test_notebooks_show_the_drawing_and_tables() -> None:
    html = GRAPHS["long-paths"]()._repr_html_()
    assert html.count("<svg") == html.count("</svg>") == 1
    assert html.count("<details>") == html.count("</details>") == 4
    assert "&lt;深い&amp;層&gt;" in html and "<深い" not in html
    for title in ("Hidden groups (3)", "Relations (6)", "Parameters (9)"):
        assert f"<summary>{title}</summary>" in html


def test_data_hold_the_same_facts() -> None:
    data = to_data(summarize(everything()))
    assert [group["states"] for group in data["groups"]] == [["h"]]
    assert [op["parameters"] for op in data["relations"]] == [["w"], ["mix"]]
    assert [op["parameters"] for op in data["excluded"]] == [[], ["out"]]
    gradients = {p["path"]: p["gradient"] for p in data["parameters"]}
    assert gradients == {
        "w": "trace", "mix": "trace", "out": "direct", "bias": "direct", "idle": "frozen",
    }  # fmt: skip


SCRIPT = """
import brainstate, jax.numpy as jnp, sys, warnings
import braintrace as bt
warnings.simplefilter("ignore")
sys.stdout.reconfigure(encoding="utf-8")
model = brainstate.nn.Sequential(bt.nn.GRUCell(3, 4), bt.nn.LSTMCell(4, 4), bt.nn.Linear(4, 2))
brainstate.nn.init_all_states(model, batch_size=2)
graph = bt.compile_etrace_graph(model, jnp.ones((2, 3)))
assert not {"braintrace.show.draw", "braintrace.show.report"} & {*sys.modules}  # until then
print(graph.report(80), graph.draw(), graph._repr_html_())
"""


def test_two_processes_show_the_same() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert b"</svg>" in outputs[0]


def test_a_graph_without_its_diagnostics_can_be_shown() -> None:
    case = zoo.case("gru-1", 2)
    case.model(case.xs[0])
    graph = bt.compile_etrace_graph(case.model, case.xs[0])
    bare = dataclasses.replace(graph, diagnostics=())
    assert summarize(bare).excluded[0].primitive == summarize(graph).excluded[0].primitive
    assert "Wr.weight" in bare.report() and "svg" in str(bare.draw())
