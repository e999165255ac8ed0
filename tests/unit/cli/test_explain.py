# SPDX-License-Identifier: Apache-2.0
"""``braintrace explain``: its options, and the file it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from braintrace.cli import UsageError
from braintrace.cli.explain import file_and_name, import_file, parse_shape
from tests.unit.cli.nets import Explain


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
        (["nets.py:batch"], 1, "sets the batch (a step with (5, 3), batch size None; see -"),
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


MISTAKES = {
    ("net.py:Net",): "there is no file 'net.py'; did you mean 'nets.py'",
    ("nets.py",): "name a model: nets.py:MODEL; models there: ",
    ("nets.py:Nett",): "'nets.py' has no 'Nett'; did you mean 'Net'?",
    ("nets.py:number",): "'number' in 'nets.py' is an int; it must be",
    ("nets.py:Sized",): "'Sized' in 'nets.py' takes arguments (size)",
    ("nets.py:Net",): "a step of Net takes x: give --input",
    ("nets.py:Net", "--input", "3;4"): "--input '3;4' is not a shape",
    ("nets.py:Net", "--input", "3:float33"): "'float33' is not a dtype; did you mean 'float32'",
    ("nets.py:Net", "--input", "3:float64"): "float64 needs brainstate.environ.set(precision=64)",
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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("64,10:float32", ((64, 10), "float32")),
        ("(3,)", ((3,), None)),
        (" 2 , 3 ", ((2, 3), None)),
        (":int32", ((), "int32")),
        ("()", ((), None)),
    ],
)
def test_shapes(text: str, found: object) -> None:
    assert parse_shape(text) == found


@pytest.mark.parametrize("text", ["3;4", "3:", "a", "3,,4", "-1"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shape; write sizes with commas"):
        parse_shape(text)


def test_a_file_and_the_name_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text("")
    assert file_and_name(f"{file}:Net") == (file, "Net")
    assert file_and_name(f"{file}:") == (file, None)
    assert file_and_name(str(file)) == (file, None)
    with pytest.raises(UsageError, match="there is no file .*net.py'; did you mean 'nets.py'"):
        file_and_name(f"{tmp_path / 'net.py'}:Net")


def test_a_file_runs_as_a_module_of_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, expected in (("json.py", "_explained_json"), ("only_here.py", "only_here")):
        (tmp_path / name).write_text("here = __name__\n")
        module = import_file(tmp_path / name)
        assert module.here == expected and sys.path[0] == str(tmp_path)
        del sys.modules[expected]
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(UsageError, match=r"text.txt' is not a Python file"):
        import_file(tmp_path / "text.txt")
