# SPDX-License-Identifier: Apache-2.0
"""What is shown of a graph, as data."""

from __future__ import annotations

import json
from typing import Any

from braintrace.base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from braintrace.compiler.graph import summarize
from braintrace.show.facts import (
    Flow,
    GroupFacts,
    OperationFacts,
    ParameterFacts,
    Summary,
    record_data,
    to_data,
)
from tests.unit.show.graphs import everything, of_zoo


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


def test_data_hold_the_same_facts() -> None:
    data = to_data(summarize(everything()))
    assert [group["states"] for group in data["groups"]] == [["h"]]
    assert [op["parameters"] for op in data["relations"]] == [["w"], ["mix"]]
    assert [op["parameters"] for op in data["excluded"]] == [[], ["out"]]
    gradients = {p["path"]: p["gradient"] for p in data["parameters"]}
    assert gradients == {
        "w": "trace", "mix": "trace", "out": "direct", "bias": "direct", "idle": "frozen",
    }  # fmt: skip


def operation(eqn: int, relation: int | None, **more: Any) -> OperationFacts:
    made = {"parameters": (("a", 0, "w"),), "shapes": ((3, 4),), "groups": (), "alignment": ()}
    return OperationFacts(eqn, relation, "etp_mm", source="net.py:3", **{**made, **more})


def test_operations_with_and_without_a_trace_are_told_apart() -> None:
    traced, excluded = operation(1, 0, groups=(0,)), operation(2, None, kind="k", reason="r")
    summary = Summary((), (), (), (excluded, traced), (), {}, (), ())
    assert summary.relations == (traced,)
    assert summary.excluded == (excluded,)


def test_data_are_plain_and_paths_are_written_as_text() -> None:
    kind, level = DiagnosticKind.PARAMETER_UNUSED, DiagnosticLevel.WARNING
    record = CompilationRecord(
        kind,
        level,
        "not used",
        "etp_mm",
        ("a", 0, "w"),
        (("cell", "h"),),
        {},
        "net.py:3",
        "drop it",
    )
    group = GroupFacts(0, 5, (("cell", "h"), ("cell", "c")), ("mV", ""), (2, 4), 2, "zero")
    parameter = ParameterFacts(("a", 0, "w"), ("float64[3,4]",), "trace", (0,))
    flow = Flow(("input", 0), ("op", 1), True)
    summary = Summary(
        ("x",), ("y",), (group,), (operation(1, 0),), (parameter,), {}, (flow,), (record,)
    )
    data = json.loads(json.dumps(to_data(summary)))
    assert data["inputs"] == ["x"] and data["outputs"] == ["y"]
    assert data["groups"][0]["states"] == ["cell.h", "cell.c"]
    assert data["groups"][0]["positions"] == [2, 4]
    assert data["relations"][0]["parameters"] == ["a[0].w"]
    assert data["excluded"] == []
    assert data["parameters"] == [
        {"path": "a[0].w", "leaves": ["float64[3,4]"], "gradient": "trace", "relations": [0]}
    ]
    assert data["flows"] == [{"source": ["input", 0], "target": ["op", 1], "credit": True}]
    assert data["warnings"] == [
        {
            "kind": "parameter_unused",
            "level": "warning",
            "message": "not used",
            "primitive": "etp_mm",
            "weight": "a[0].w",
            "hidden": ["cell.h"],
            "source": "net.py:3",
            "remedy": "drop it",
        }
    ]


def test_a_record_about_no_parameter_has_none() -> None:
    record = CompilationRecord(DiagnosticKind.STATE_MISMATCH, DiagnosticLevel.INFO, "text")
    assert record_data(record)["weight"] is None
    assert record_data(record)["hidden"] == []
