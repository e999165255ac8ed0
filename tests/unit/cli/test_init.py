# SPDX-License-Identifier: Apache-2.0
"""The command, and what its sub-commands share."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from braintrace import cli

ROOT = Path(__file__).resolve().parents[3]


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


def test_a_name_that_is_like_one_that_is_known():
    assert cli.hint("modle", ["model", "other"], "names") == "; did you mean 'model'?"
    assert cli.hint("x", ["b", "a"], "names") == "; names: a, b"
    assert cli.hint("x", [], "names") == "; there are no names"
    many = cli.hint("x", [f"name{k:02}" for k in range(31)], "names")
    assert many.endswith("name29, ...") and "name30" not in many


def test_an_error_of_the_users_code_has_its_last_place_beside_the_file(tmp_path):
    helper, file = tmp_path / "helper.py", tmp_path / "nets.py"
    helper.write_text("def f():\n    raise OSError('no data')\n")
    space: dict = {}
    exec(compile(helper.read_text(), str(helper), "exec"), space)
    with pytest.raises(OSError, match="no data") as caught:
        space["f"]()
    assert cli.told(caught.value, file) == f"{helper}:2: OSError: no data"
    assert cli.told(ValueError("here"), file) == f"{file}: ValueError: here"
    with pytest.raises(SyntaxError) as caught:
        compile("x = = 1", "nets.py", "exec")
    assert cli.told(caught.value, file) == "nets.py:1: SyntaxError: invalid syntax"


def test_the_version_and_what_is_no_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"braintrace-core {cli.VERSION}\n"
    for words in ([], ["explian"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
    assert "invalid choice: 'explian'" in capsys.readouterr().err


def test_every_command_has_its_module():
    for name in cli.COMMANDS:
        module = import_module(f"braintrace.cli.{name.replace('-', '_')}")
        assert callable(module.declare) and callable(module.run)


@pytest.mark.parametrize(("error", "status"), [(cli.Refusal, 1), (cli.UsageError, 2)])
def test_refusals_are_one_line_and_a_status(error, status, monkeypatch, capsys):
    def run(options):
        raise error("not this way")

    monkeypatch.setattr("braintrace.cli.plugins.run", run)
    assert cli.main(["plugins"]) == status
    assert capsys.readouterr().err == "braintrace: not this way\n"
