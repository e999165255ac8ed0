# SPDX-License-Identifier: Apache-2.0
"""Packaging: what the plugin says of itself, what its metadata say, and what it imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from braintrace import __version__
from braintrace.ops.spec import ETPPrimitiveSpec
from braintrace.plugins.hooks import Offer, collect
from braintrace.plugins.host import Host
from braintrace.plugins.metadata import Candidate, package_of, scan
from braintrace.plugins.records import PluginState, Settings, normalised
from braintrace.plugins.resolution import resolve

from .case import ConformanceCase
from .check import plugin_check, require

_LIGHT = """
import sys
import {module}
from jax._src import xla_bridge
sys.exit(7 if xla_bridge.backends_are_initialized() else 0)
"""


@dataclass(frozen=True, eq=False)
class PluginSubject:
    """A plugin object, or the specifications of one, and its cases."""

    plugin: object
    cases: tuple[ConformanceCase, ...]

    @cached_property
    def offer(self) -> Offer:
        """What the plugin declares, validated by the host."""
        return collect(self.plugin, __version__)

    @cached_property
    def installed(self) -> Candidate:
        """The installed distribution that declares the plugin.

        Raises
        ------
        AssertionError
            When there is none.
        """
        name = normalised(self.offer.info.distribution)
        found = [c for c in scan(__version__) if c.distribution == name]
        require(
            found,
            f"no installed distribution is called {self.offer.info.distribution!r}, as "
            "braintrace_plugin_info says; install it, for example with pip install -e .",
        )
        return found[0]

    @property
    def package(self) -> str:
        """The top-level package of the plugin object."""
        return package_of(self.installed.plugins[0])


@plugin_check("packaging.declaration")
def declaration(subject: PluginSubject) -> None:
    """The host accepts what the hooks return."""
    learners = subject.offer.manager.hook.braintrace_algorithms.get_hookimpls()
    require(subject.offer.specs or learners, "braintrace_primitives returns no primitive")


@plugin_check("packaging.every_primitive_has_a_case")
def every_primitive_has_a_case(subject: PluginSubject) -> None:
    """The cases are those of the plugin's primitives, and each primitive has one."""
    check_cases(subject.offer.specs, subject.cases)


def check_cases(specs: tuple[ETPPrimitiveSpec, ...], cases: tuple[ConformanceCase, ...]) -> None:
    """Require that the specifications of the cases are the given ones."""
    given, used = {spec.name for spec in specs}, {case.spec.name for case in cases}
    require(given <= used, f"no case of {', '.join(sorted(given - used))}")
    require(used <= given, f"a case of {', '.join(sorted(used - given))}, which is not declared")


@plugin_check("packaging.entry_point")
def entry_point(subject: PluginSubject) -> None:
    """The distribution's metadata name the plugin object, under the name of its family."""
    entries = subject.installed.plugins
    require(len(entries) == 1, f"{len(entries)} entry points in braintrace.plugins.v1, expected 1")
    family = subject.offer.info.family
    require(entries[0].name == family, f"it is called {entries[0].name!r}, the family {family!r}")
    require(
        entries[0].load() is subject.plugin,
        f"the entry point {entries[0].value!r} is another object than the plugin under test",
    )


@plugin_check("packaging.version")
def version(subject: PluginSubject) -> None:
    """The version is one: in ``braintrace_plugin_info``, in the metadata, and in the package."""
    said, known = subject.offer.info.version, subject.installed.version
    require(said == known, f"braintrace_plugin_info says {said!r}, the metadata {known!r}")
    own = getattr(import_module(subject.package), "__version__", known)
    require(own == known, f"{subject.package}.__version__ is {own!r}, the metadata say {known!r}")


@plugin_check("packaging.requires_core")
def requires_core(subject: PluginSubject) -> None:
    """The metadata require ``braintrace-core`` with a lower bound that this version meets."""
    installed = subject.installed
    require(">=" in installed.needs_core, "no requirement braintrace-core>=... in the metadata")
    require(
        installed.core_admitted,
        f"it requires braintrace-core{installed.needs_core}, this is {__version__}",
    )


@plugin_check("packaging.exports")
def exports(subject: PluginSubject) -> None:
    """The exports are the same in the metadata, and each name resolves to its object."""
    info, entries = subject.offer.info, subject.installed.exports
    said = {(kind, name) for kind, names in info.exports.items() for name in names}
    differ = sorted(said ^ set(entries))
    require(not differ, f"only in one of braintrace_plugin_info and metadata: {differ}")
    host = Host(Settings())
    for (kind, name), entry in entries.items():
        value = entry.load()
        require(callable(value), f"{name!r} is {value!r:.60}, neither a function nor a class")
        require(resolve(host, kind, name) is value, f"{name!r} resolves to another object")


@plugin_check("packaging.loads")
def loads(subject: PluginSubject) -> None:
    """A host that knows all installed plugins can load it."""
    host = Host(Settings())
    host.load(next(c for c in host.candidates() if c == subject.installed))
    (record,) = (r for r in host.records() if r.distribution == subject.installed.distribution)
    require(record.state is PluginState.LOADED, record.reason)
    require(not record.problems, "; ".join(record.problems))


@plugin_check("packaging.imports_the_plugin_api_alone")
def imports_the_plugin_api_alone(subject: PluginSubject) -> None:
    """Of ``braintrace``, it imports ``plugin_api``, ``algorithms`` and ``testing`` alone."""
    wrong = sorted({f"{file.name}: {name}" for file, name in _braintrace_imports(subject.package)})
    require(not wrong, f"these are not part of the plugin interface: {', '.join(wrong)}")


def _braintrace_imports(package: str) -> Iterator[tuple[Path, str]]:
    allowed = ("braintrace.plugin_api", "braintrace.algorithms", "braintrace.testing")
    for file in _files_of(package):
        for name in _imported(ast.parse(file.read_text(encoding="utf-8"))):
            ours = name == "braintrace" or name.startswith("braintrace.")
            if ours and not any(name == a or name.startswith(f"{a}.") for a in allowed):
                yield file, name


def _files_of(package: str) -> list[Path]:
    module = import_module(package)
    if hasattr(module, "__path__"):
        return sorted(file for folder in module.__path__ for file in Path(folder).rglob("*.py"))
    return [Path(str(module.__file__))]


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@plugin_check("packaging.import_initialises_no_backend")
def import_initialises_no_backend(subject: PluginSubject) -> None:
    """Importing the plugin makes no array: a user can still choose the device."""
    module = subject.installed.plugins[0].value.partition(":")[0].strip()
    code = f"import sys\nsys.path[:] = {sys.path!r}\n" + _LIGHT.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    require(done.returncode != 7, "importing it initialises a JAX backend")
    require(done.returncode == 0, f"it cannot be imported alone: {done.stderr[-300:]}")


def declared_cases(plugin: Any) -> tuple[ConformanceCase, ...]:
    """What the plugin's own hook ``braintrace_conformance_cases`` returns; none without it."""
    from braintrace.plugins.records import API, HostInfo

    hook = getattr(plugin, "braintrace_conformance_cases", None)
    return () if hook is None else tuple(hook(HostInfo(API, __version__)))
