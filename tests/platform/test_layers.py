# SPDX-License-Identifier: Apache-2.0
"""Import order is the order in which data flow, and one version for every distribution."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core" / "src" / "braintrace"
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))

#: Every module imports from earlier ones only. The plugin host and the command line stand beside
#: this order.
LAYERS = [
    "_errors", "_units", "_jax", "_primitive", "_rules", "_jaxpr", "_position_control",
    "_position_rules", "_element_map", "_positions", "_batched", "_compile", "_layout",
    "_sweeps", "_execute", "_position_graph", "_whole", "_algorithm", "_config", "_checks",
    "_vjp_executor", "_progress", "_online", "_recorded", "_direct", "_block_size",
    "_sequence", "_windows", "_guards", "_losses", "_drivers", "_optimizers", "_reporting",
    "_feedback", "_synthesizer", "_storage", "_saved", "_resets", "_stepping", "_gradients",
    "_learner", "_learners", "_further_learners", "_ready", "testing",
]  # fmt: skip

HOST = {
    "__init__": set(),
    "_lazy": {"_plugins"},
    "_plugins": {
        "__init__",
        "_errors",
        "_units",
        "_jax",
        "_lazy",
        "_learner",
        "_ready",
        "_primitive",
    },
    "plugins": {"_plugins"},
    "_family": set(),
    "plugin_api": {"_errors", "_family", "_learner", "_plugins", "_primitive"},
    "rules": {"_algorithm"},
    "nn": {"_lazy"},
    "_cli": {"__init__", "_compile", "_errors", "_lazy", "_plugins"},
    "__main__": {"_cli"},
}

#: Who asks the host for what a plugin has: the owner of a pickled primitive, a learner's name,
#: what the conformance kit checks.
ASKS_THE_HOST = {"_primitive", "_ready", "testing"}


def imported(file: Path) -> Iterator[str]:
    """Absolute names of the modules that a file of core imports, wherever in it."""
    package = ["braintrace", *file.relative_to(CORE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield ".".join([*base, node.module])
            else:
                yield from (".".join([*base, alias.name]) for alias in node.names)


def modules_of_core(file: Path) -> set[str]:
    """The top-level modules of core that a file imports; ``__init__`` is the package itself."""
    parts = (name.split(".") for name in imported(file))
    return {p[1] if len(p) > 1 else "__init__" for p in parts if p[0] == "braintrace"}


def files_of(module: str) -> list[Path]:
    folder = CORE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [CORE / f"{module}.py"]


def test_every_module_of_core_has_its_place():
    found = {p.stem for p in CORE.glob("*.py")} | {
        p.parent.name for p in CORE.glob("*/__init__.py")
    }
    assert found == {*LAYERS, *HOST}


@pytest.mark.parametrize("module", LAYERS)
def test_core_imports_from_earlier_layers_only(module):
    earlier = {*LAYERS[: LAYERS.index(module) + 1]}
    earlier |= {"_plugins", "__version__"} if module in ASKS_THE_HOST else set()
    for file in files_of(module):
        assert modules_of_core(file) <= earlier, file


@pytest.mark.parametrize("module", sorted(HOST.keys() - {"__init__"}))
def test_the_host_imports_what_it_stands_on(module):
    for file in files_of(module):
        names = {"__init__" if name == "__version__" else name for name in modules_of_core(file)}
        assert names <= HOST[module] | {module}, file


def test_one_module_of_core_reads_metadata():
    readers = {
        file.relative_to(CORE).as_posix()
        for file in CORE.rglob("*.py")
        if any(re.match(r"(importlib[._]metadata|pkg_resources)", n) for n in imported(file))
        or "importlib import metadata" in file.read_text()
    }
    assert readers == {"_plugins/_metadata.py"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_plugins_import_only_the_plugin_api(plugin):
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
    packages = [CORE, *(p / "src" / f"braintrace_{p.name}" for p in PLUGINS)]
    for package in packages:
        assert f'__version__ = "{version}"' in (package / "__init__.py").read_text(), package


def test_what_every_distribution_says():
    for folder in [ROOT / "core", *PLUGINS]:
        assert project(folder)["requires-python"] == ">=3.11"
        assert project(folder)["license"] == "Apache-2.0"
        assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        assert list((folder / "src").glob("*/py.typed"))


def test_entry_points_are_what_core_expects():
    from braintrace import lazy

    found = {"ops": {}, "nn": {}}
    for folder in PLUGINS:
        groups = project(folder)["entry-points"]
        assert list(groups["braintrace.plugins.v1"]) == [folder.name]
        for kind, names in found.items():
            names |= dict.fromkeys(groups.get(f"braintrace.{kind}", {}), project(folder)["name"])
    assert found == lazy.OFFICIAL


def test_constraints_are_bare_versions():
    line = re.compile(r'[A-Za-z0-9_.-]+==[0-9][\w.]*( ; python_version (<|>=) "3\.12")?')
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(text.startswith("#") or line.fullmatch(text) for text in lines)
