# SPDX-License-Identifier: Apache-2.0
"""Import order is the order in which data flow, and one version for every distribution."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "src" / "braintrace"
DISTRIBUTIONS = sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))
PLUGINS = [folder for folder in DISTRIBUTIONS if folder.name != "testing"]
#: Families have primitives, which core finds by their entry points. An adapter, which carries
#: models over to another library and has none, uses core as everybody does.
FAMILIES = [f for f in PLUGINS if "braintrace.plugins.v1" in (f / "pyproject.toml").read_text()]
ADAPTERS = [folder for folder in PLUGINS if folder not in FAMILIES]

TESTING = ROOT / "plugins" / "testing" / "src" / "braintrace_testing"

#: The folders and modules of core, from the ground up, and which of them each may import.
HOUSE = {
    "base": "",
    "names": "",
    "published": "base",
    "ops": "base",
    "show": "base",
    "jaxprs": "base ops",
    "plugins": "base names ops",
    "compiler": "base published ops show jaxprs",
    "lazy": "names plugins",
    "executor": "base ops jaxprs compiler",
    "files": "base compiler",
    "cli": "base names show plugins compiler",
    "algorithms": "base published ops jaxprs compiler executor",
    "drivers": "base ops jaxprs compiler executor algorithms",
    "learners": "base show compiler executor algorithms drivers files plugins",
    "plugin_api": "base ops plugins learners",
    "rules": "algorithms base",
    "nn": "lazy",
    "__main__": "cli",
    "__init__": "lazy",
}
#: What only asks for the version of the package.
ASKS_FOR_THE_VERSION = {"files"}

#: Lines of each folder and of the modules beside them, at most; raised only with a reason: from
#: 9,965, 5,731 and 18,337 lines by credit that passes through uniform layers (docs/credit.md),
#: and by what records and learners answer to code for braintrace 0.2 (published.py, former.py).
CEILINGS = {
    "base": 1036,
    "ops": 3107,
    "show": 1473,
    "jaxprs": 1935,
    "plugins": 1729,
    "compiler": 8304,
    "executor": 3004,
    "files": 933,
    "cli": 742,
    "algorithms": 3491,
    "drivers": 3855,
    "learners": 4377,
    "modules": 815,
}
MINIMAL_CORE = ("base", "ops", "jaxprs", "compiler", "executor", "algorithms")
LINES_OF_MINIMAL_CORE, CODE_OF_MINIMAL_CORE = 20_877, 13_010
WHOLE_CORE = 34_801


def module_of(file: Path) -> str:
    """The dotted name of a file of core or of the testing distribution."""
    root, package = (CORE, "braintrace")
    if file.is_relative_to(TESTING):
        root, package = (TESTING, "braintrace_testing")
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join([package, *parts]).removesuffix(".__init__")


FILES = {module_of(f): f for folder in (CORE, TESTING) for f in sorted(folder.rglob("*.py"))}


def imported(file: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    parts = module_of(file).split(".")
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in FILES else module


def edges() -> dict[str, set[str]]:
    """The files of core and of the testing distribution that each of them imports."""
    return {name: ({*imported(file)} & FILES.keys()) - {name} for name, file in FILES.items()}


def room(name: str) -> str:
    """The folder, or the module beside the folders, that a module of core is in."""
    first = [*name.split("."), "__init__"][1]
    return first if name.startswith("braintrace.") or name == "braintrace" else "testing"


def leading_to_a_circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left when all nodes that lead nowhere have been taken away, again and again."""
    left = {node: set(targets) for node, targets in graph.items()}
    while dead := {node for node, targets in left.items() if not targets & left.keys()}:
        left = {node: targets - dead for node, targets in left.items() if node not in dead}
    return sorted(left)


def test_every_room_of_the_house_is_in_the_table():
    found = {p.stem for p in CORE.glob("*.py")} | {p.parent.name for p in CORE.glob("*/*.py")}
    assert found == HOUSE.keys()
    assert len([*CORE.glob("*.py")]) <= 8 and len([*CORE.glob("*/__init__.py")]) <= 12


def test_rooms_import_from_the_floors_below_only():
    order = list(HOUSE)
    for name, allowed in HOUSE.items():
        assert all(order.index(other) < order.index(name) for other in allowed.split()), name
    for name, targets in edges().items():
        if room(name) == "testing":
            continue
        allowed = {*HOUSE[room(name)].split(), room(name)}
        allowed |= {"__init__"} if room(name) in ASKS_FOR_THE_VERSION else set()
        assert {room(target) for target in targets} <= allowed, (name, targets)


def test_no_circle_between_files():
    """Imports in functions and those for types alone count."""
    assert leading_to_a_circle(edges()) == []
    assert leading_to_a_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_a_folder_says_what_it_is():
    for name in HOUSE:
        if (CORE / name).is_dir():
            text = (CORE / name / "__init__.py").read_text()
            assert ast.get_docstring(ast.parse(text)), name


def place_of_tests(file: Path) -> Path:
    """Where the tests of a file of core are; of ``__init__.py`` that is ``test_init.py``."""
    inside = file.relative_to(CORE)
    return ROOT / "tests" / "unit" / inside.parent / f"test_{inside.stem.strip('_')}.py"


def defines_something(file: Path) -> bool:
    """Whether a file holds functions or classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) for node in ast.walk(ast.parse(file.read_text())))


def test_every_file_has_its_tests_and_no_tests_are_left_without_a_file():
    """``python3 dev.py test --changed`` finds them by these names."""
    files = {file: place_of_tests(file) for file in CORE.rglob("*.py")}
    lacking = [f for f, tests in files.items() if defines_something(f) and not tests.is_file()]
    assert [file.relative_to(CORE).as_posix() for file in lacking] == []
    there = {*ROOT.glob("tests/unit/**/test_*.py")}
    assert sorted(str(tests) for tests in there - {*files.values()}) == []
    empty = [tests for tests in there if "\ndef test_" not in tests.read_text()]
    assert empty == []


def test_changed_files_bring_their_tests():
    needed_by = runpy.run_path(str(ROOT / "dev.py"))["needed_by"]
    for file in CORE.rglob("*.py"):
        if defines_something(file):
            assert place_of_tests(file) in needed_by([file]), file
    shared = ROOT / "tests" / "unit" / "show" / "graphs.py"
    assert ROOT / "tests" / "unit" / "show" / "test_draw.py" in needed_by([shared])


def test_lines_of_each_folder():
    """What ``python3 dev.py check`` prints."""
    found = runpy.run_path(str(ROOT / "dev.py"))["lines_of_core"]()
    lines = {room: counts[0] for room, counts in found.items()}
    assert lines.keys() == CEILINGS.keys()
    assert {k: n for k, n in lines.items() if n > CEILINGS[k]} == {}
    minimal = [found[room] for room in MINIMAL_CORE]
    assert sum(counts[0] for counts in minimal) <= LINES_OF_MINIMAL_CORE
    assert sum(counts[1] for counts in minimal) <= CODE_OF_MINIMAL_CORE
    assert sum(lines.values()) <= WHOLE_CORE


def test_one_module_of_core_reads_metadata():
    readers = {
        file.relative_to(CORE).as_posix()
        for file in CORE.rglob("*.py")
        if any(re.match(r"(importlib[._]metadata|pkg_resources)", n) for n in imported(file))
        or "importlib import metadata" in file.read_text()
    }
    assert readers == {"plugins/metadata.py"}


@pytest.mark.parametrize("plugin", FAMILIES, ids=lambda p: p.name)
def test_families_import_only_the_plugin_api(plugin):
    package = f"braintrace_{plugin.name}"
    allowed = {"braintrace.plugin_api", package, "__future__"}
    third_party = {"jax", "saiunit", "brainstate", "numpy"}
    for file in (plugin / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                known = top in third_party or top in sys.stdlib_module_names
                assert name in allowed or known, f"{file} imports {name}"


@pytest.mark.parametrize("plugin", ADAPTERS, ids=lambda p: p.name)
def test_adapters_use_public_names_and_nothing_imports_them(plugin):
    """The folder of an adapter has the name of the library that it adapts."""
    assert "entry-points" not in project(plugin)
    statements = {
        node: file
        for source in (plugin, ROOT / "core", *FAMILIES, TESTING)
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    public = {"braintrace", "braintrace.algorithms", "braintrace.nn", "braintrace.plugin_api"}
    for node, file in statements.items():
        names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if file.is_relative_to(plugin):
            assert {n for n in names if n.startswith("braintrace.")} <= public, file
        else:
            tops = {name.partition(".")[0] for name in names}
            assert not tops & {plugin.name, f"braintrace_{plugin.name}"}, file


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def test_versions_are_in_step():
    core = project(ROOT / "core")
    version = core["version"]
    major, minor = version.split(".")[:2]
    bounds = f"braintrace-core>={major}.{minor},<{major}.{int(minor) + 1}"
    for folder in PLUGINS:
        assert project(folder)["version"] == version
        assert bounds in project(folder)["dependencies"]
    testing = project(ROOT / "plugins" / "testing")
    assert testing["version"] == version
    assert f"braintrace-core=={version}" in testing["dependencies"]
    packages = [CORE, *(p / "src" / f"braintrace_{p.name}" for p in PLUGINS)]
    for package in packages:
        assert f'__version__ = "{version}"' in (package / "__init__.py").read_text(), package


def test_what_every_distribution_says():
    for folder in [ROOT / "core", *DISTRIBUTIONS]:
        assert project(folder)["requires-python"] == ">=3.11"
        assert project(folder)["license"] == "Apache-2.0"
        assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        assert list((folder / "src").glob("*/py.typed"))


def test_entry_points_are_what_core_expects():
    from braintrace import names

    found = {"ops": {}, "nn": {}}
    for folder in FAMILIES:
        groups = project(folder)["entry-points"]
        assert list(groups["braintrace.plugins.v1"]) == [folder.name]
        for kind, exports in found.items():
            exports |= dict.fromkeys(groups.get(f"braintrace.{kind}", {}), project(folder)["name"])
    assert found == names.OFFICIAL


def test_constraints_are_bare_versions():
    line = re.compile(r'[A-Za-z0-9_.-]+==[0-9][\w.]*( ; python_version (<|>=) "3\.12")?')
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(text.startswith("#") or line.fullmatch(text) for text in lines)
