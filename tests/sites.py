# SPDX-License-Identifier: Apache-2.0
"""Folders of made-up distributions, and fresh interpreters that see them, as fixtures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from braintrace.plugin_api import PluginInfo, hookimpl
from braintrace.plugins import process
from braintrace.plugins.host import Host
from braintrace.plugins.records import Settings

PLUGIN = """
from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, bind, hookimpl


def scale(x, w):
    return x * w


SPECS = tuple(ETPPrimitiveSpec(name, scale) for name in {primitives!r})


def op(x, w):
    return bind(SPECS[0], x, w)


class Plugin:
    @hookimpl
    def braintrace_plugin_info(self):
        return PluginInfo({family!r}, api={api!r}, version={version!r})

    @hookimpl
    def braintrace_primitives(self, api):
        return SPECS


plugin = Plugin()
"""


HIDDEN = """
import {library} as library

every = library.distributions
library.distributions = lambda **options: (
    found for found in every(**options) if found.metadata.get("Name") != {distribution!r}
)
"""


QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # programs are small


def source(family: str, *primitives: str, api: tuple[int, int] = (1, 0), version: str = "") -> str:
    """The module of a correct plugin; ``op`` binds the first primitive."""
    return PLUGIN.format(family=family, primitives=primitives, api=api, version=version)


class Site:
    """A folder like site-packages, to be put on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        module: str,
        text: str,
        *,
        family: str | None = None,
        ops: Iterable[str] = (),
        nn: Iterable[str] = (),
        requires: str = "",
        group: str = "braintrace.plugins.v1",
        version: str = "1.0",
    ) -> Site:
        """Install a distribution with one module and its entry points."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"[{group}]", f"{family} = {module}:plugin"] if family else []
        lines += ["[braintrace.ops]", *(f"{op} = {module}:op" for op in ops)]
        lines += ["[braintrace.nn]", *(f"{layer} = {module}:op" for layer in nn)]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        metadata += f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(metadata)
        (self.folder / f"{module}.py").write_text(text)
        return self

    def hide(self, distribution: str, library: str = "importlib.metadata") -> Site:
        """Take an installed distribution out of what a library of metadata finds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = HIDDEN.format(distribution=distribution, library=library)
        (self.folder / "sitecustomize.py").write_text(text)
        return self


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty :class:`Site`."""
    return Site(tmp_path / "site")


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[[str], Site]:
    """Several sites, by name."""
    return lambda name: Site(tmp_path / name)


@pytest.fixture
def plugin_source() -> Callable[..., str]:
    """:func:`source`, the text of a correct plugin module."""
    return source


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run code in a fresh interpreter that sees the sites; returns what it passes to ``out``."""

    def in_fresh_interpreter(code: str, *sites: Site, env: Mapping[str, str] | None = None) -> Any:
        variables = {k: v for k, v in os.environ.items() if not k.startswith("BRAINTRACE_")}
        paths = [str(s.folder) for s in sites] + [variables.get("PYTHONPATH", "")]
        variables |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **QUICK, **(env or {})}
        program = (
            "import json, sys\n"
            "def out(value): print('OUT' + json.dumps(value))\n" + textwrap.dedent(code)
        )
        done = subprocess.run(
            [sys.executable, "-c", program], env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines = [line[3:] for line in done.stdout.splitlines() if line.startswith("OUT")]
        return json.loads(lines[-1]) if lines else None

    return in_fresh_interpreter


@pytest.fixture
def host_of(monkeypatch):
    """A host of its own, in this process, that sees the sites; it also serves ``bind``."""

    def make(*sites, **settings):
        for site in reversed(sites):
            monkeypatch.syspath_prepend(str(site.folder))
        host = Host(Settings(**settings))
        monkeypatch.setattr(process, "_HOST", host)
        return host

    return make


def record_of(host, family):
    return next(r for r in host.records() if r.family == family)


def scale(x, w):
    return x * w


def plugin_object(family, specs, **info):
    class Plugin:
        @hookimpl
        def braintrace_plugin_info(self):
            return PluginInfo(family, **info)

        @hookimpl
        def braintrace_primitives(self, api):
            return specs

    return Plugin()


@pytest.fixture
def command(site):
    """Run ``braintrace`` with a site; its status, and its output as data or as text."""

    def run(*arguments, env=None):
        variables = {k: v for k, v in os.environ.items() if not k.startswith("BRAINTRACE_")}
        path = [str(site.folder), variables.get("PYTHONPATH", "")]
        variables |= {"PYTHONPATH": os.pathsep.join(filter(None, path)), **QUICK, **(env or {})}
        done = subprocess.run(
            [sys.executable, "-m", "braintrace", *arguments],
            env=variables, capture_output=True, text=True, cwd=site.folder.parent,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        text = done.stdout
        return done.returncode, json.loads(text) if "--json" in arguments else text + done.stderr

    return run
