# SPDX-License-Identifier: Apache-2.0
"""The report of a compiled graph, as text and in a notebook."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace as bt
from braintrace.base.types import show_path
from braintrace.compiler.graph import summarize
from braintrace.show.facts import CreditFacts, to_data
from braintrace.show.report import Cell, fold_rows, to_html, to_text
from braintrace.show.text import columns
from tests import zoo
from tests.unit.show.graphs import GRAPHS, compiled, everything, stack
from tests.zoo import HIDDEN, IN, weight


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
        "graphs.py:",
    ):  # fmt: skip
        assert text in report
    assert report.splitlines()[-1].endswith("warnings")
    assert "1 hidden group of 1 state" in " ".join(report.split())
    assert str(Path(__file__).parent) not in report.split("Warnings")[0]


def test_what_is_exact_is_a_note_and_counts_as_no_warning() -> None:
    model = brainstate.nn.Sequential(bt.nn.GRUCell(IN, HIDDEN), bt.nn.Linear(HIDDEN, 2))
    learner = bt.compile(model, "d_rtrl", jnp.ones((2, IN)), batch_size=2)
    text, html = learner.graph.report(width=100), learner.graph._repr_html_()
    (note,) = to_data(summarize(learner.graph))["notes"]
    assert text.split("Notes\n")[1].startswith("- relation_excluded_non_temporal: etp_mm(")
    assert "Warnings" not in text + html and "<summary>Notes (1)" in html
    assert text.endswith("0 warnings") and learner.report.counts["warnings"] == 0
    assert note["kind"] == "relation_excluded_non_temporal"


def test_layers_that_are_alike_share_a_row() -> None:
    graph = stack(bt.nn.LSTMCell, 20)
    report = graph.report(width=80)
    assert len(report.splitlines()) < 50
    for text in ("layers[0-19].h", "layers[1-19].Wi.weight", "4, 8, …, 76", "0-19"):
        assert text in report
    assert "layers[7].Wi.weight" in graph.report(width=80, fold=False)


def test_where_credit_passes_and_stops_is_a_table() -> None:
    pairs = [CreditFacts((("l", i, "h"),), (("l", j, "h"),), "stops: a gate", "Detach it")
             for j in range(6) for i in range(j)]  # fmt: skip
    passes = CreditFacts((("l", 5, "h"),), (("out",),), "passes: a filter [2]", "")
    summary = dataclasses.replace(summarize(everything()), credit=(*pairs, passes))
    text = to_text(summary, 100).split("Credit over time")[1].split("Operations without")[0]
    rows = [line.split() for line in text.strip().splitlines()]
    assert rows[2:] == [
        ["l[0-4].h", "l[1-5].h", "stops:", "a", "gate"],
        ["l[5].h", "out", "passes:", "a", "filter", "[2]"],
        ["Detach", "it"],
    ]
    assert to_text(summary, 100, fold=False).count("a gate") == len(pairs)
    assert "<p>Detach it</p>" in to_html(summary, "")
    assert to_data(summary)["credit"][-1]["above"] == ["out"]


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


def test_rows_fold_only_where_they_are_alike() -> None:
    rows = [(Cell(paths=(("a", k, "w"),)), Cell("x" if k != 5 else "y")) for k in range(10)]
    folded = fold_rows(rows)
    assert [f"{row[0].paths[0][1]}" for row in folded] == ["0-4", "5", "6-9"]
    uneven = [(Cell(paths=(("a", k),)), Cell(numbers=(k * k,))) for k in range(6)]
    assert fold_rows(uneven) == tuple(uneven)


def test_notebooks_show_the_drawing_and_tables() -> None:
    html = GRAPHS["long-paths"]()._repr_html_()
    assert html.count("<svg") == html.count("</svg>") == 1
    assert html.count("<details>") == html.count("</details>") == 4
    assert "&lt;深い&amp;層&gt;" in html and "<深い" not in html
    for title in ("Hidden groups (3)", "Relations (6)", "Parameters (9)"):
        assert f"<summary>{title}</summary>" in html


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
