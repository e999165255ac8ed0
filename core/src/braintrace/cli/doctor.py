# SPDX-License-Identifier: Apache-2.0
"""``braintrace doctor``: what is wrong with the installation, and what to do about it.

Each plugin is loaded in a process of its own. A check that fails itself becomes a finding.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .common import OK, REFUSED, Command, UsageError, core_version, hint, official

if TYPE_CHECKING:
    from ..plugins.metadata import Candidate
    from ..plugins.probe import Report

CORE, PACKAGE = "braintrace-core", "braintrace"
REINSTALL = f"Run: pip install --force-reinstall --no-deps {CORE}"


@dataclass(frozen=True)
class Found:
    """A finding and the distribution that it is about."""

    subject: str
    id: str
    level: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n  {self.fix}" if self.fix else ""
        return f"{self.level}: {self.id}: {self.subject} {self.text}{fix}"


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="only this plugin, by family or distribution"
    )
    parser.add_argument("--json", action="store_true", help="print data instead of a report")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long a plugin may take to load (default: 60)",
    )


def doctor(options: argparse.Namespace) -> int:
    """Examine core and the plugins; the status is 1 when there is an error."""
    from ..plugins import metadata
    from ..plugins.process import host

    if not options.timeout > 0:
        raise UsageError(f"--timeout must be positive, got {options.timeout:g}")
    metadata.use_backport()
    found = list(_safely(CORE, _core))
    candidates = host().candidates()
    absent = sorted(official() - {c.distribution for c in candidates})
    chosen = _chosen(options.name, candidates, absent)
    reports = {c.distribution: _examined(c, options.timeout) for c in chosen}
    for candidate in chosen:
        report = reports[candidate.distribution]
        found += _safely(candidate.distribution, partial(_plugin, candidate, report))
    found += [f for c in chosen for f in _shared_primitives(c.distribution, reports)]
    if options.name and not chosen:
        found.append(_not_installed(options.name, absent))
    print(_as_json(chosen, reports, found, absent) if options.json
          else _as_text(chosen, reports, found, absent))  # fmt: skip
    return REFUSED if any(f.level == "error" for f in found) else OK


def _safely(subject: str, check: Callable[[], Iterator[Found]]) -> list[Found]:
    """What a check finds; when it fails, that is what was found."""
    found: list[Found] = []
    try:
        found.extend(check())
    except Exception as error:
        text = f"could not be examined ({type(error).__name__}: {error})"
        found.append(Found(subject, "check_failed", "error", text))
    return found


def _chosen(
    name: str | None, candidates: Sequence[Candidate], absent: Sequence[str]
) -> list[Candidate]:
    """The plugins to examine; none for an official one that is not installed."""
    from ..plugins.settings import normalised

    if name is None:
        return list(candidates)
    wanted = normalised(name)
    found = [c for c in candidates if wanted in (normalised(c.family), c.distribution)]
    if not found and _official_name(wanted) not in absent:
        known = {c.family for c in candidates} | {n.removeprefix("braintrace-") for n in absent}
        raise UsageError(f"no plugin is called {name!r}{hint(name, known, 'plugins')}")
    return found


def _official_name(name: str) -> str:
    return f"braintrace-{name.removeprefix('braintrace-')}"


def _not_installed(name: str, absent: Sequence[str]) -> Found:
    from ..plugins.settings import normalised

    distribution = _official_name(normalised(name))
    fix = f"Run: pip install {distribution}"
    return Found(distribution, "not_installed", "error", "is not installed.", fix)


# --- core -----------------------------------------------------------------------------------------


def _core() -> Iterator[Found]:
    """Whether the package is core's own, and has what it needs."""
    from ..plugins import metadata

    owners = metadata.owners(PACKAGE)
    for owner in owners:
        if owner.distribution != CORE:
            text = f"{owner.version} in {owner.origin} owns the import name {PACKAGE!r} too"
            fix = f"Run: pip uninstall {owner.distribution}. {REINSTALL}"
            yield Found(owner.distribution, "foreign_distribution", "error", text, fix)
    own = [owner for owner in owners if owner.distribution == CORE]
    if not own:
        text = "is imported, but no distribution of that name is installed"
        yield Found(CORE, "no_metadata", "warning", text, REINSTALL)
    elif own[0].version != core_version():
        text = (
            f"{own[0].version} is installed, but the package that is imported is {core_version()}"
        )
        yield Found(CORE, "wrong_package", "error", text, REINSTALL)
    if len(own) > 1:
        places = " and ".join(f"{o.version} in {o.origin}" for o in own)
        yield Found(CORE, "installed_twice", "warning", f"is installed more than once: {places}")
    yield from _requirements(CORE) if own else ()


def _requirements(distribution: str) -> Iterator[Found]:
    from ..plugins import metadata

    for requirement, version in metadata.unmet(distribution):
        if not requirement.startswith(CORE):  # core's own bounds are a state of the plugin
            have = f"{version} is installed" if version else "it is not installed"
            fix = f'Run: pip install "{requirement}"'
            yield Found(distribution, "requirement", "error", f"needs {requirement}; {have}", fix)


# --- plugins --------------------------------------------------------------------------------------


def _examined(candidate: Candidate, timeout: float) -> Report:
    """The state of a plugin; it is loaded in its own process if it may be."""
    from ..plugins.probe import Report, probe
    from ..plugins.process import host

    records = {record.distribution: record for record in host().records()}
    record = records[candidate.distribution]
    if str(record.state) != "discovered":
        return Report(str(record.state), record.reason)
    return probe(candidate.distribution, timeout)


def _plugin(candidate: Candidate, report: Report) -> Iterator[Found]:
    subject = candidate.distribution
    if report.state == "disabled":
        yield Found(subject, "disabled", "info", report.reason)
        return
    if report.state != "loaded":
        yield Found(subject, report.state, "error", report.reason)
    for problem in report.problems:
        yield Found(subject, "exports" if "export" in problem else "account", "error", problem)
    for own in report.findings:
        yield Found(subject, **own)
    yield from _requirements(subject)
    yield from _names(candidate)


def _names(candidate: Candidate) -> Iterator[Found]:
    """Exported names that core, an official distribution or another plugin has."""
    from ..names import CORE as CORE_NAMES
    from ..names import OFFICIAL, SUBMODULES

    for kind, name in candidate.exports:
        owner = OFFICIAL[kind].get(name, candidate.distribution)
        if kind == "ops" and (name in CORE_NAMES or name in SUBMODULES):
            text = f"exports {name!r}, which is a name of {CORE}: core's is used"
            yield Found(candidate.distribution, "name_of_core", "warning", text)
        elif owner != candidate.distribution:
            text = f"exports {name!r}, which belongs to {owner!r}: this one is not used"
            yield Found(candidate.distribution, "official_name", "warning", text)
        elif rivals := _rivals(candidate, kind, name):
            text = f"exports {name!r}, as {rivals} does: none of them is used"
            fix = "Uninstall all but one, or disable the others with BRAINTRACE_DISABLE_PLUGINS"
            yield Found(candidate.distribution, "name_collision", "error", text, fix)


def _rivals(candidate: Candidate, kind: str, name: str) -> str:
    from ..plugins.process import host
    from ..plugins.resolution import enabled_providers

    others = (c for c in enabled_providers(host(), kind, name) if c is not candidate)
    return " and ".join(c.title for c in others)


def _shared_primitives(distribution: str, reports: dict[str, Report]) -> Iterator[Found]:
    """Primitives of one name in two plugins; each loads alone, the second of both fails."""
    for other, report in reports.items():
        shared = set(report.primitives) & set(reports[distribution].primitives)
        if other != distribution and shared:
            text = f"and {other!r} both define {', '.join(sorted(shared))}; only one can be used"
            yield Found(distribution, "primitive_collision", "error", text)


# --- output ---------------------------------------------------------------------------------------


def _as_json(
    chosen: Sequence[Candidate],
    reports: dict[str, Report],
    found: Sequence[Found],
    absent: Sequence[str],
) -> str:
    plugins = [
        {"family": c.family, "distribution": c.distribution, "version": c.version,
         "origin": c.origin, "exports": [name for _, name in c.exports],
         **asdict(reports[c.distribution])}
        for c in chosen
    ]  # fmt: skip
    data: dict[str, Any] = {
        "core": core_version(),
        "python": platform.python_version(),
        "ok": not any(f.level == "error" for f in found),
        "plugins": plugins,
        "not_installed": list(absent),
        "findings": [asdict(f) for f in found],
    }
    return json.dumps(data, indent=2, ensure_ascii=False)


def _as_text(
    chosen: Sequence[Candidate],
    reports: dict[str, Report],
    found: Sequence[Found],
    absent: Sequence[str],
) -> str:
    lines = [f"{CORE} {core_version()}, Python {platform.python_version()}"]
    for candidate in chosen:
        report = reports[candidate.distribution]
        time = f" ({report.seconds:.1f} s)" if report.seconds else ""
        lines.append(f"{candidate.distribution} {candidate.version}: {report.state}{time}")
    lines += [f"not installed: {', '.join(absent)}"] if absent else []
    lines += ["", *map(str, found)] if found else ["no problem was found"]
    return "\n".join(lines)


COMMAND = Command(
    "examine the installation: every plugin is loaded in a process of its own", _declare, doctor
)
