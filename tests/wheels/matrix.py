# SPDX-License-Identifier: Apache-2.0
"""Subsets of the families, installed by file into this interpreter's own environment.

``python -P tests/wheels/matrix.py WHEELS [own-tests] [pairs] [every-subset]`` is run by the
interpreter of an environment that has core, its dependencies, pytest and hatchling. Subsets are
none of the families, each, with ``pairs`` every pair, and all, or with ``every-subset`` every one.
For each: what is present works and what is absent says so; ``braintrace doctor`` agrees, which
loads each plugin in a process of its own and therefore takes long: it is asked with none, one and
all of the plugins, and in every subset with ``pairs``. With ``own-tests``, each plugin's own tests
are run with core, that plugin and ``braintrace-testing`` alone; those of an adapter, which is no
family, with the families that it requires. The tests of the plugin host are run with the oldest
pluggy and the newest, and those of a plugin that ``braintrace new-plugin`` writes; and a foreign
distribution that writes over the package is found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOST_TESTS = [f"tests/unit/plugins/test_{name}.py" for name in ("host", "hooks")]
TESTING = "braintrace-testing"
GROUP = "[braintrace.plugins.v1]"  # entry points of the families
OLDEST_PLUGGY = "1.6.0"
DROPPED = ("BRAINTRACE_", "PYTHON")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
ENVIRONMENT |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
#: A third of the plugins' own tests: the suite runs the rest of them with another Python.
SHARE = {"BRAINTRACE_CELLS": "third"}


def subsets(families: Sequence[str], options: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """None, each, every pair if so wished, and all of the families; or every subset.

    Every subset: each is one plugin away from the one before.
    """
    every = "every-subset" in options
    for size in () if every else (0, 1, *([2] if "pairs" in options else []), len(families)):
        yield from combinations(families, size)
    for count in range(2 ** len(families) if every else 0):
        code = count ^ (count >> 1)
        yield tuple(family for bit, family in enumerate(families) if code >> bit & 1)


def run(*arguments: str | Path, **variables: str) -> str:
    """What this interpreter prints when it is run with arguments and environment variables.

    Raises
    ------
    RuntimeError
        When it fails, with the end of what it printed.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT | variables, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}\n{done.stdout[-6000:]}")
    return done.stdout


def pip(*arguments: str | Path) -> None:
    """Change this environment."""
    run("-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def change(wheels: dict[str, Path], before: Sequence[str], after: Sequence[str]) -> None:
    """Bring the installed plugins from one subset to another."""
    if gone := [f"braintrace-{family}" for family in before if family not in after]:
        pip("uninstall", "--yes", *gone)
    if new := [wheels[family] for family in after if family not in before]:
        pip("install", "--no-deps", "--no-index", *new)


def try_subsets(wheels: dict[str, Path], testing: Path, options: Sequence[str]) -> None:
    """The check of ``subset.py`` for subsets, and the own tests of each plugin alone.

    ``braintrace-testing`` is installed for the tests of the plugins only.
    """
    installed: tuple[str, ...] = tuple(wheels)
    pip("uninstall", "--yes", TESTING)
    for subset in subsets(tuple(wheels), options):
        start = time.monotonic()
        change(wheels, installed, subset)
        installed = subset
        ask = "pairs" in options or len(subset) in (0, 1, len(wheels))
        run("-I", HERE / "subset.py", *(["--doctor"] if ask else []), *subset)
        tests = ""
        if "own-tests" in options and len(subset) == 1:
            pip("install", "--no-deps", "--no-index", testing)
            said = run("-P", "-m", "pytest", "-q", f"plugins/{subset[0]}/tests", **SHARE)
            tests = f"; own tests: {said.splitlines()[-1].strip('= ')}"
            pip("uninstall", "--yes", TESTING)
        names = " + ".join(("core", *subset))
        print(f"ok  {names} ({time.monotonic() - start:.0f} s){tests}", flush=True)
    change(wheels, installed, tuple(wheels))
    pip("install", "--no-deps", "--no-index", testing)


def try_adapters(adapters: dict[str, Path], wheels: dict[str, Path]) -> None:
    """The own tests of each adapter, with the families that it requires alone."""
    for name, wheel in adapters.items():
        start = time.monotonic()
        text = read(wheel, "METADATA")
        required = [f for f in wheels if f"Requires-Dist: braintrace-{f}" in text]
        change(wheels, tuple(wheels), required)
        said = run("-P", "-m", "pytest", "-q", f"plugins/{name}/tests", **SHARE)
        change(wheels, required, tuple(wheels))
        tests = f"own tests: {said.splitlines()[-1].strip('= ')}"
        with_these = " + ".join(("core", *required, name))
        print(f"ok  {with_these} ({time.monotonic() - start:.0f} s); {tests}", flush=True)


def read(wheel: Path, name: str) -> str:
    """The text of a file of a wheel's metadata; empty when there is none."""
    with zipfile.ZipFile(wheel) as archive:
        found = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(found[0]).decode() if found else ""


def try_pluggy() -> None:
    """The tests of the plugin host with the oldest pluggy and the newest."""
    for wanted in (f"pluggy=={OLDEST_PLUGGY}", "pluggy<2"):
        pip("install", "--no-deps", "--upgrade", wanted)
        version = run("-c", "import importlib.metadata as m; print(m.version('pluggy'))").strip()
        said = run("-P", "-m", "pytest", "-q", *HOST_TESTS).splitlines()[-1]
        print(f"ok  pluggy {version}: {said.strip('= ')}", flush=True)


def try_new_plugin() -> None:
    """A plugin that ``braintrace new-plugin`` writes: built, installed by file, its tests run."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "plugin"
        run("-I", "-m", "braintrace", "new-plugin", "fresh_gain", "--directory", target)
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, target)
        pip("install", "--no-deps", "--no-index", *Path(folder).glob("*.whl"))
        said = run("-P", "-m", "pytest", "-q", "-c", target / "pyproject.toml", target / "tests")
        run("-I", "-m", "braintrace", "doctor", "fresh_gain")
        pip("uninstall", "--yes", "braintrace-fresh-gain")
    print(f"ok  new-plugin: {said.splitlines()[-1].strip('= ')}", flush=True)


def try_foreign() -> None:
    """A distribution that writes over the package of core is found by the doctor."""
    with tempfile.TemporaryDirectory() as folder:
        pip("install", "--no-deps", "--no-index", foreign_wheel(Path(folder)))
    script = Path(sysconfig.get_path("scripts")) / "braintrace"
    done = subprocess.run(
        [script, "doctor", "--json"], env=ENVIRONMENT, capture_output=True, text=True
    )
    found = {f["id"] for f in json.loads(done.stdout or '{"findings": []}')["findings"]}
    if done.returncode != 1 or "foreign_distribution" not in found:
        raise RuntimeError(f"the doctor says nothing of the foreign package: {done}")
    print("ok  the doctor finds a foreign distribution", flush=True)


def foreign_wheel(folder: Path) -> Path:
    """A wheel of a distribution ``braintrace`` with a package of the same name."""
    name = "braintrace-0.0.1"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "braintrace/__init__.py": "",
        f"{name}.dist-info/METADATA": "Metadata-Version: 2.1\nName: braintrace\nVersion: 0.0.1\n",
        f"{name}.dist-info/WHEEL": tag,
    }
    record = f"{name}.dist-info/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


def main(folder: str, *options: str) -> int:
    """Try everything; the exit status."""
    plugins = sorted(Path(folder).glob("braintrace_*.whl"))
    named = {re.sub(r"braintrace_(\w+?)-.*", r"\1", file.name): file for file in plugins}
    wheels = {n: f for n, f in named.items() if GROUP in read(f, "entry_points.txt")}
    adapters = {n: f for n, f in named.items() if n not in {*wheels, "core", "testing"}}
    try:
        try_subsets(wheels, named["testing"], options)
        if "own-tests" in options:
            try_adapters(adapters, wheels)
        try_pluggy()
        try_new_plugin()
        try_foreign()
    except RuntimeError as error:
        print(f"FAILED  {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
