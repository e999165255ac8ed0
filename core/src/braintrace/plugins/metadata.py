# SPDX-License-Identifier: Apache-2.0
"""The one module that reads package metadata: who is installed, and what each one exports.

The standard library's ``importlib.metadata`` on purpose: importing its backport changes the
behaviour of the standard one for the whole process. The command line has a process of its own and
asks for the backport, which validates more.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from ..names import DISTRIBUTED
from .records import PluginRecord, PluginState, normalised

PUBLIC_PREFIX = {"ops": "braintrace.", "nn": "braintrace.nn."}
PLUGIN_GROUP = "braintrace.plugins.v"
EXPORT_GROUPS = {"braintrace.ops": "ops", "braintrace.nn": "nn"}
CORE = "braintrace-core"
_NO_PLUGINS = tuple(distribution for distribution, _ in DISTRIBUTED.values())

_library: Any = metadata


def use_backport() -> None:
    """Read metadata with ``importlib_metadata`` from now on, when it can be imported."""
    global _library
    with contextlib.suppress(Exception):
        _library = importlib.import_module("importlib_metadata")


@dataclass(frozen=True)
class Candidate:
    """A distribution that declares plugin entry points; nothing of it is imported.

    ``exports`` maps (kind, name) to the entry point of the exported object, with ``kind`` one of
    ``"ops"`` and ``"nn"``. ``needs_core`` are the bounds that its metadata puts on core, and
    ``core_admitted`` says whether this core is within them. ``unreadable`` says why nothing else is
    known of it than its name.
    """

    distribution: str
    version: str
    origin: str
    plugins: tuple[metadata.EntryPoint, ...] = ()
    exports: dict[tuple[str, str], metadata.EntryPoint] = field(default_factory=dict)
    needs_core: str = ""
    core_admitted: bool = True
    unreadable: str = ""

    @property
    def family(self) -> str:
        """Name of the family: that of its plugin object, else of the distribution."""
        if self.unreadable:
            return self.distribution.removeprefix("braintrace-")
        return self.plugins[0].name if self.plugins else self.distribution

    @property
    def package(self) -> str | None:
        return package_of(self.plugins[0]) if self.plugins else None

    @property
    def title(self) -> str:
        """Distribution and version, as messages name it."""
        return f"{self.distribution!r} {self.version}".rstrip()

    @cached_property
    def record(self) -> PluginRecord:
        """What is known of it from its metadata alone."""
        names = tuple(PUBLIC_PREFIX[kind] + name for kind, name in self.exports)
        who = self.family, self.distribution, self.version, self.origin
        return PluginRecord(*who, PluginState.DISCOVERED, names)


def package_of(entry: metadata.EntryPoint) -> str:
    """Top-level package that an entry point lives in."""
    return entry.value.partition(":")[0].partition(".")[0].strip()


def scan(core_version: str) -> tuple[Candidate, ...]:
    """Read the metadata of every distribution, once; one that is broken hides nobody else."""
    found: dict[str, Candidate] = {}
    broken: dict[str, Candidate] = {}
    for dist in _library.distributions():
        try:
            candidate, of = _read(dist, core_version), found
        except Exception as error:
            candidate, of = _unreadable(dist, error), broken
        if candidate is not None:  # the first on sys.path is the one that gets imported
            of.setdefault(candidate.distribution, candidate)
    return tuple(sorted({**broken, **found}.values(), key=lambda c: c.distribution))


def _read(dist: Any, core_version: str) -> Candidate | None:
    """A distribution with entry points of ours."""
    exported, plugins = [], []
    for entry in dist.entry_points:
        if entry.group in EXPORT_GROUPS:
            exported.append(entry)
        elif entry.group.startswith(PLUGIN_GROUP):
            plugins.append(entry)
    if not exported and not plugins:
        return None
    if not (name := normalised(dist.metadata.get("Name") or "")):
        raise ValueError("METADATA has no name")
    exports = {(EXPORT_GROUPS[entry.group], entry.name): entry for entry in exported}
    bounds = _bounds_on_core(dist.requires or [], core_version)
    return Candidate(name, dist.version, _origin(dist), tuple(plugins), exports, *bounds)


def _unreadable(dist: Any, error: Exception) -> Candidate | None:
    """One that cannot be read, where its name or the text of its entry points says it is ours."""
    folder = Path(str(getattr(dist, "_path", "")))
    name = normalised(folder.name.partition("-")[0])
    declared = b""
    with contextlib.suppress(OSError):
        declared = (folder / "entry_points.txt").read_bytes()
    own = name.startswith("braintrace-") and name not in (CORE, *_NO_PLUGINS)
    if not own and b"[braintrace." not in declared:
        return None
    why = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
    return Candidate(name, "", str(folder.parent), unreadable=why)


_NAME = re.compile(r"\s*[\w.-]+")
_BOUND = re.compile(r"(>=|<)(\d+(?:\.\d+)*)")


def _bounds_on_core(requires: list[str], core_version: str) -> tuple[str, bool]:
    """The bounds that requirements put on core, and whether its version is within them."""
    ours = [r.strip() for r in requires if (n := _NAME.match(r)) and normalised(n[0]) == CORE]
    return _plain_bounds(ours, core_version) or _parsed_bounds(ours, core_version)


def _plain_bounds(ours: list[str], core_version: str) -> tuple[str, bool] | None:
    """Bounds like ``>=0.1,<0.2`` on a release; ``None`` where it takes more to read them.

    They are the usual ones, and importing their parser takes longer than all else that a first
    operation needs of metadata.
    """
    texts = [_NAME.sub("", required, count=1).replace(" ", "") for required in ours]
    parts = [part for text in texts for part in sorted(text.split(","))]
    bounds = [_BOUND.fullmatch(part) for part in parts]
    here = _BOUND.fullmatch(f"<{core_version}")
    if here is None or None in bounds:
        return None
    version = _release(here[2])
    within = [(version < _release(b[2])) == (b[1] == "<") for b in bounds if b is not None]
    return ",".join(parts), all(within)


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a release; 0.1 and 0.1.0 are the same one."""
    return tuple(map(int, re.sub(r"(\.0+)+$", "", text).split(".")))


def _parsed_bounds(ours: list[str], core_version: str) -> tuple[str, bool]:
    active = [r.specifier for r in _active(ours)]
    admitted = all(bounds.contains(core_version, prereleases=True) for bounds in active)
    return ",".join(map(str, active)), admitted


def _active(requires: Iterable[str]) -> list[Any]:
    """The requirements whose markers hold here, without extras."""
    from packaging.requirements import Requirement

    parsed = map(Requirement, requires)
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def _origin(dist: Any) -> str:
    """Where the distribution lies: the source tree of an editable install, else the folder."""
    direct_url = json.loads(dist.read_text("direct_url.json") or "{}")
    if direct_url.get("dir_info", {}).get("editable"):
        return str(direct_url["url"])
    return str(dist.locate_file(""))


def owners(package: str) -> tuple[Candidate, ...]:
    """The distributions that installed files into an import package, or bear its name."""
    found: dict[object, Candidate] = {}
    for dist in _library.distributions():
        with contextlib.suppress(Exception):
            name = normalised(dist.metadata.get("Name") or "")
            files = dist.read_text("RECORD") or dist.read_text("installed-files.txt") or ""
            holds = any(line.startswith(f"{package}/") for line in files.splitlines())
            if holds or name in (package, CORE):
                who = name, str(dist.version), _origin(dist)
                found[who] = Candidate(*who)
    return tuple(found.values())


def unmet(distribution: str) -> tuple[tuple[str, str | None], ...]:
    """Requirements of a distribution that are not met, with the version that is installed."""
    required = [(r, version_of(r.name)) for r in _active(_library.requires(distribution) or ())]
    return tuple(
        (f"{r.name}{r.specifier}", version)
        for r, version in required
        if version is None or not r.specifier.contains(version, prereleases=True)
    )


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; ``None`` when it is not installed."""
    try:
        return str(_library.version(distribution))
    except Exception:
        return None
