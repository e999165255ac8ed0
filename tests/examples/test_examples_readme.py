# SPDX-License-Identifier: Apache-2.0
"""The README says what there is: every module, every plugin with its names, a short example."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_module_has_its_line() -> None:
    core = ROOT / "core" / "src" / "braintrace"
    modules = {file.name for file in core.glob("*.py") if not file.stem.startswith("__")}
    modules -= {"rules.py"}  # a former name
    modules |= {f"{folder.parent.name}/" for folder in core.glob("*/__init__.py")}
    table = README.partition("Folders of `core/src/braintrace/`")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == sorted(modules)


def test_every_plugin_is_listed_with_the_names_it_provides() -> None:
    lines = README.partition("## Plugins")[2].splitlines()
    for file in ROOT.glob("plugins/*/pyproject.toml"):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        if project["name"] == "braintrace-testing":  # no plugin
            continue
        (line,) = [line for line in lines if line.startswith(f"| `{project['name']}`")]
        groups = project.get("entry-points", {})
        names = {f"braintrace.{name}" for name in groups.get("braintrace.ops", {})}
        names |= {*groups.get("braintrace.nn", {})}
        package = file.parent / "src" / project["name"].replace("-", "_")
        if not groups:  # an adapter
            (names,) = re.findall(r"__all__ = (\[.*?\])", (package / "__init__.py").read_text())
            names = {*ast.literal_eval(names)}
        listed = {*re.findall(r"`([^`]+)`", line)}
        listed -= {project["name"], "braintrace.nn", package.name}
        assert listed == names


def test_the_example_has_fifteen_lines() -> None:
    code = README.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 15
