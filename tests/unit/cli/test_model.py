# SPDX-License-Identifier: Apache-2.0
"""From a user's module to a compiled graph, shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

import braintrace
from braintrace.compiler.findings import downstream, foreign, operations, record
from braintrace.compiler.findings import model as findings
from braintrace.plugin_api import PluginInfo, hookimpl
from braintrace.plugins import process
from braintrace.plugins.host import Host
from braintrace.plugins.records import Settings
from tests.unit.cli.nets import Explain, line_of


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nets.py:make"], "(5, 4)"),
        (["nets.py:make", "--batch-size", "6", "--input", "6,3:float32"], "(6, 4)"),
        (["nets.py:only_model", "--input", "(3,)"], "(4,)"),
        (["nets.py:Net", "--batch-size", "2", "--input", "2, 3"], "(2, 4)"),
        (["nets.py:cell", "--batch-size", "7"], "(7, 4)"),  # its in_size says what the input is
    ],
)
def test_models_are_found_and_reported(
    explain: Explain, arguments: list[str], expected: str
) -> None:
    status, out, err = explain(*arguments)
    assert (status, err) == (0, "")
    assert "Hidden groups" in out
    assert expected in out


def test_the_options_of_compiling(explain: Explain) -> None:
    command = ["nets.py:Needy", "--input", "3"]
    status, _, err = explain(*command)
    assert status == 1
    assert "ControlFlowPolicy(scan_unroll_limit=20)" in err
    command += ["--scan-unroll-limit", "20"]
    status, _, err = explain(*command)
    assert status == 1
    assert "frozen=['idle.weight']" in err
    status, out, err = explain(*command, "--frozen", "idle", "--recurrence-scope", "coupled")
    assert (status, err) == (0, "")
    assert "1 frozen" in out
    assert "coupled" in out


def test_a_file_that_cannot_be_written(explain: Explain) -> None:
    status, _, err = explain("nets.py:make", "--draw", "absent/graph.svg")
    assert status == 2
    assert "'absent/graph.svg' cannot be written: No such file" in err


def test_data(explain: Explain) -> None:
    data: dict[str, Any] = json.loads(explain("nets.py:make", "--json")[1])
    assert [group["states"] for group in data["groups"]] == [["cell.h"]]
    traced = [op["parameters"] for op in data["relations"]]
    assert traced == [["cell.Wz.weight"], ["cell.Wh.weight"]]
    assert {record["level"] for record in data["diagnostics"]} == {"info", "warning"}


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["--weight", "cell.Wr.weight"], {"relation_excluded_weight_to_weight"}),
        (["--kind", "relation_included"], {"relation_included"}),
        (["--kind", "RELATION_INCLUDED", "--weight", "out.weight"], set()),
        (["--hidden", "cell.h", "--kind", "relation_included"], {"relation_included"}),
    ],
)
def test_diagnostics_can_be_selected(
    explain: Explain, arguments: list[str], kinds: set[str]
) -> None:
    as_data = explain("nets.py:make", "--json", *arguments)[1]
    found = {record["kind"] for record in json.loads(as_data)}
    assert found == kinds
    status, out, _ = explain("nets.py:make", *arguments)
    assert status == 0
    assert all(kind in out for kind in kinds or {"no diagnostic fits"})


def test_the_kinds_that_are_offered_are_those_that_records_have(explain: Explain) -> None:
    status, _, err = explain("nets.py:make", "--kind", "no_such_thing")
    modules = (downstream, findings, foreign, operations, record)
    texts = [value for of in modules for value in vars(of).values()]
    found = {text.kind.value for text in texts if isinstance(text, record.Finding)}
    assert (status, set(err.strip().partition("; kinds: ")[2].split(", "))) == (2, found)


REFUSALS = {
    "nets.py:Stateless": f"nets.py:{line_of('def update', 2)}: the model has no",
    "nets.py:Wrong": f"nets.py:{line_of('jnp.ones(7)')}: TypeError: add got incompatible shapes",
    "nets.py:fails": f"nets.py:{line_of('raise')}: OSError: no data",
    "broken.py:Net": "broken.py:2: SyntaxError",
    "exits.py:Net": "calls sys.exit(3) while it is imported",
}


@pytest.mark.parametrize("model", REFUSALS)
def test_a_refused_model_is_one_text_with_its_place(explain: Explain, model: str) -> None:
    status, out, err = explain(model, "--input", "3")
    assert (status, out) == (1, "")
    assert REFUSALS[model] in err
    assert len(err.splitlines()) == 1


@pytest.fixture
def advising(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that has advice about one kind of diagnostic."""

    class Advising:
        @hookimpl
        def braintrace_plugin_info(self) -> PluginInfo:
            return PluginInfo("advising")

        @hookimpl
        def braintrace_primitives(self, api: object) -> list[Any]:
            return []

        @hookimpl
        def braintrace_explain(self, record: Any) -> str | None:
            excluded = record.kind.value == "relation_excluded_weight_to_weight"
            return f"ask about {record.weight_path[-1]}" if excluded else None

    monkeypatch.setattr(process, "_HOST", Host(Settings()))
    braintrace.plugins.register(Advising())


def test_a_plugin_gives_advice(explain: Explain, advising: None) -> None:
    select = ["nets.py:make", "--weight", "cell.Wr.weight"]
    assert "  advice of advising: ask about weight" in explain(*select)[1].splitlines()
    assert "advice of advising: ask about weight" in explain("nets.py:make")[1].splitlines()
    records = json.loads(explain("nets.py:make", "--json")[1])["diagnostics"]
    advised = {record["kind"] for record in records if "advice" in record}
    assert advised == {"relation_excluded_weight_to_weight"}
