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
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

from .records import PluginRecord, PluginState
from .settings import normalised

PUBLIC_PREFIX = {"ops": "braintrace.", "nn": "braintrace.nn."}
PLUGIN_GROUP = "braintrace.plugins.v"
EXPORT_GROUPS = {"braintrace.ops": "ops", "braintrace.nn": "nn"}
CORE = "braintrace-core"

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
    ``core_admitted`` says whether this core is within them.
    """

    distribution: str
    version: str
    origin: str
    plugins: tuple[metadata.EntryPoint, ...]
    exports: dict[tuple[str, str], metadata.EntryPoint]
    needs_core: str = ""
    core_admitted: bool = True

    @property
    def family(self) -> str:
        """Name of the family: that of its plugin object, else of the distribution."""
        return self.plugins[0].name if self.plugins else self.distribution

    @property
    def package(self) -> str | None:
        """Top-level package of its plugin object."""
        return package_of(self.plugins[0]) if self.plugins else None

    @property
    def title(self) -> str:
        """Distribution and version, as messages name it."""
        return f"{self.distribution!r} {self.version}".rstrip()

    @cached_property
    def record(self) -> PluginRecord:
        """What is known of it from its metadata alone."""
        return PluginRecord(
            self.family,
            self.distribution,
            self.version,
            self.origin,
            PluginState.DISCOVERED,
            tuple(PUBLIC_PREFIX[kind] + name for kind, name in self.exports),
        )


def package_of(entry: metadata.EntryPoint) -> str:
    """Top-level package that an entry point lives in."""
    return entry.value.partition(":")[0].partition(".")[0].strip()


def scan(core_version: str) -> tuple[Candidate, ...]:
    """Read the metadata of every distribution, once; the broken ones are passed over."""
    found: dict[str, Candidate] = {}
    for dist in _library.distributions():
        try:
            entries = [
                entry
                for entry in dist.entry_points
                if entry.group in EXPORT_GROUPS or entry.group.startswith(PLUGIN_GROUP)
            ]
            if entries and (name := dist.metadata.get("Name")):
                # The first on sys.path is the one that gets imported.
                found.setdefault(normalised(name), _candidate(dist, name, entries, core_version))
        except Exception:
            continue
    return tuple(sorted(found.values(), key=lambda c: c.distribution))


def _candidate(
    dist: Any, name: str, entries: list[metadata.EntryPoint], core_version: str
) -> Candidate:
    exported = [entry for entry in entries if entry.group in EXPORT_GROUPS]
    needs_core, core_admitted = _bounds_on_core(dist.requires or [], core_version)
    return Candidate(
        distribution=normalised(name),
        version=dist.version,
        origin=_origin(dist),
        plugins=tuple(entry for entry in entries if entry not in exported),
        exports={(EXPORT_GROUPS[entry.group], entry.name): entry for entry in exported},
        needs_core=needs_core,
        core_admitted=core_admitted,
    )


def _bounds_on_core(requires: list[str], core_version: str) -> tuple[str, bool]:
    """The bounds that requirements put on core, and whether its version is within them."""
    ours = [r.strip() for r in requires if (n := _NAME.match(r)) and normalised(n[0]) == CORE]
    plain = _plain_bounds([_NAME.sub("", r, count=1) for r in ours], core_version)
    return _parsed_bounds(ours, core_version) if plain is None else plain


_NAME = re.compile(r"\s*[\w.-]+")
_BOUND = re.compile(r"(>=|<)(\d+(?:\.\d+)*)")


def _plain_bounds(given: list[str], core_version: str) -> tuple[str, bool] | None:
    """Bounds like ``>=0.1,<0.2`` on a release; ``None`` where it takes more to read them.

    They are the usual ones, and importing their parser takes longer than all else that a first
    operation needs of metadata.
    """
    parts = [sorted(text.replace(" ", "").split(",")) for text in given]
    bounds = [_BOUND.fullmatch(part) for group in parts for part in group]
    here = _BOUND.fullmatch(f"<{core_version}")
    if here is None or None in bounds:
        return None
    version = _release(here[2])
    within = [(version < _release(b[2])) == (b[1] == "<") for b in bounds if b is not None]
    return ",".join(part for group in parts for part in group), all(within)


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a release; 0.1 and 0.1.0 are the same one."""
    return tuple(map(int, re.sub(r"(\.0+)+$", "", text).split(".")))


def _parsed_bounds(ours: list[str], core_version: str) -> tuple[str, bool]:
    from packaging.requirements import Requirement

    active = [r for r in map(Requirement, ours) if _applies(r)]
    admitted = all(r.specifier.contains(core_version, prereleases=True) for r in active)
    return ",".join(str(r.specifier) for r in active), admitted


def _applies(required: Any) -> bool:
    """Whether the marker of a requirement holds here, without extras."""
    return required.marker is None or bool(required.marker.evaluate({"extra": ""}))


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
        try:
            name = normalised(dist.metadata.get("Name") or "")
            files = dist.read_text("RECORD") or dist.read_text("installed-files.txt") or ""
            holds = any(line.startswith(f"{package}/") for line in files.splitlines())
            if holds or name in (package, CORE):
                who = name, str(dist.version), _origin(dist)
                found[who] = Candidate(*who, plugins=(), exports={})
        except Exception:
            continue
    return tuple(found.values())


def unmet(distribution: str) -> tuple[tuple[str, str | None], ...]:
    """Requirements of a distribution that are not met, with the version that is installed."""
    from packaging.requirements import Requirement

    found = []
    for required in map(Requirement, _library.requires(distribution) or ()):
        if _applies(required):
            version = version_of(required.name)
            if version is None or not required.specifier.contains(version, prereleases=True):
                found.append((f"{required.name}{required.specifier}", version))
    return tuple(found)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; ``None`` when it is not installed."""
    try:
        return str(_library.version(distribution))
    except Exception:
        return None
