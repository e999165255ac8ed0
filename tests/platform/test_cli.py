# SPDX-License-Identifier: Apache-2.0
"""The command line: in processes of its own where that matters, else in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import brainstate
import pytest

import braintrace
from braintrace import cli
from braintrace.plugin_api import PluginInfo, hookimpl
from braintrace.plugins import process
from braintrace.plugins.host import Host
from braintrace.plugins.records import Settings

ROOT = Path(__file__).resolve().parents[2]
NETS = """
import brainstate
import braintrace as bt
import jax.numpy as jnp


class Net(brainstate.nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.cell = bt.nn.GRUCell(3, size)
        self.out = bt.nn.Linear(size, 2)

    def update(self, x):
        return self.out(self.cell(x))


class Sized(Net):
    def __init__(self, size):
        super().__init__(size)


class Needy(Net):
    # needs every option of compiling

    def __init__(self):
        super().__init__()
        self.idle = bt.nn.Linear(2, 2)

    def update(self, x):
        for_loop = brainstate.transform.for_loop
        return for_loop(lambda k: self.out(self.cell(x)), jnp.arange(20))[-1]


class Stateless(Net):
    def update(self, x):
        return self.out(jnp.zeros(4))


class Wrong(Net):
    def update(self, x):
        return super().update(x) + jnp.ones(7)


def make():
    net = Net()
    brainstate.nn.init_all_states(net, batch_size=5)
    return net, jnp.ones((5, 3))


def only_model():
    return Net()


def fails():
    raise OSError("no data")


cell = bt.nn.GRUCell(3, 4)
number = 3
"""

Explain = Callable[..., tuple[int, str, str]]
"""Status, output and error output of ``braintrace explain`` with some arguments."""


def line_of(text: str, occurrence: int = 0) -> int:
    """The line of the file on which some text stands."""
    found = [k for k, line in enumerate(NETS.splitlines(), 1) if text in line]
    return found[occurrence]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "broken.py").write_text("x = 1\ny = = 2\n", encoding="utf-8")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def in_a_process(folder: Path) -> Explain:
    def run(*arguments: str) -> tuple[int, str, str]:
        env = {**os.environ, "JAX_ENABLE_X64": "0", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-m", "braintrace", "explain", *arguments]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def explain(
    folder: Path, x32: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Explain:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> tuple[int, str, str]:
        before = {*sys.modules}
        try:
            with brainstate.environ.context(precision=32):
                status = cli.main(["explain", *arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        for name in {"nets", "broken", "exits"} - before:
            sys.modules.pop(name, None)
        return status, *capsys.readouterr()

    return run


def test_a_model_in_a_process(in_a_process: Explain, folder: Path) -> None:
    status, out, err = in_a_process("nets.py:make", "--draw", "graph.svg", "--html", "graph.html")
    assert (status, err) == (0, "")
    assert "Hidden groups" in out
    ElementTree.parse(folder / "graph.svg")
    html = (folder / "graph.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") and "<svg" in html


@pytest.mark.parametrize(
    ("arguments", "expected", "text"),
    [
        (["nets.py:Wrong", "--input", "3"], 1, "TypeError: add got incompatible shapes"),
        (["net.py:Net"], 2, "there is no file 'net.py'; did you mean 'nets.py'"),
        (["nets.py:Nett"], 2, "'nets.py' has no 'Nett'; did you mean 'Net'?"),
        (["nets.py:Net", "--input", "3;4"], 2, "--input '3;4' is not a shape"),
    ],
)
def test_a_mistake_in_a_process(
    in_a_process: Explain, arguments: list[str], expected: int, text: str
) -> None:
    status, out, err = in_a_process(*arguments)
    assert (status, out) == (expected, "")
    assert text in err and "Traceback" not in err


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


MISTAKES = {
    ("net.py:Net",): "there is no file 'net.py'; did you mean 'nets.py'",
    ("nets.py",): "name a model: nets.py:MODEL; models there: ",
    ("nets.py:Nett",): "'nets.py' has no 'Nett'; did you mean 'Net'?",
    ("nets.py:number",): "'number' in 'nets.py' is an int; it must be",
    ("nets.py:Sized",): "'Sized' in 'nets.py' takes arguments (size)",
    ("nets.py:Net",): "a step of Net takes x: give --input",
    ("nets.py:Net", "--input", "3;4"): "--input '3;4' is not a shape",
    ("nets.py:Net", "--input", "3:float33"): "'float33' is not a dtype; did you mean 'float32'",
    ("nets.py:Net", "--input", "3:float64"): "dtype float64 needs JAX_ENABLE_X64=1",
    ("nets.py:Net", "--batch-size", "0"): "--batch-size must be at least 1, got 0",
    ("nets.py:make", "--scan-unroll-limit", "-1"): "--scan-unroll-limit must not be negative",
    ("nets.py:make", "--recurrence-scope", "full"): "invalid choice: 'full'",
    ("nets.py:make", "--weight", "cell.Wr.wieght"): "did you mean 'cell.Wr.weight'",
    ("nets.py:make", "--hidden", "cell"): "--hidden 'cell' is not in the model",
    ("nets.py:make", "--kind", "relation"): "--kind 'relation' is unknown",
    (): "the following arguments are required: FILE:MODEL",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes_are_answered(explain: Explain, arguments: tuple[str, ...]) -> None:
    status, out, err = explain(*arguments)
    assert (status, out) == (2, "")
    assert MISTAKES[arguments] in err


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


def test_help_and_mistakes_need_no_jax(run: Any) -> None:
    code = """
        from braintrace import cli
        statuses = [cli.main(["explain", "absent.py:Net"])]
        try:
            cli.main(["--help"])
        except SystemExit as error:
            statuses.append(error.code)
        out([statuses, [m for m in ("jax", "brainstate") if m in sys.modules]])
    """
    assert run(code) == [[2, 0], []]


def test_the_script_is_declared() -> None:
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"braintrace": "braintrace.cli:main"}
