# SPDX-License-Identifier: Apache-2.0
"""``braintrace doctor``: what is wrong with the installation, and what to do about it.

Each plugin is loaded in a process of its own. A check that fails itself becomes a finding.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from .. import names
from ..plugins import metadata
from ..plugins.metadata import Candidate
from ..plugins.probe import Report, probe
from ..plugins.process import host
from ..plugins.records import Finding, normalised
from ..plugins.resolution import enabled_providers, how_to_install
from . import FAMILIES, OK, REFUSED, VERSION, UsageError, as_json, hint

CORE, PACKAGE = "braintrace-core", "braintrace"
REINSTALL = f"Run: pip install --force-reinstall --no-deps {CORE}"


Found = tuple[str, Finding]
"""A finding, and the distribution that it is about."""


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="only this plugin, by family or distribution")
    add("--json", action="store_true", help="print data instead of a report")
    add("--timeout", type=float, default=60.0, metavar="SECONDS",
        help="how long a plugin may take to load (default: 60)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Examine core and the plugins; the status is 1 when there is an error."""
    if not options.timeout > 0:
        raise UsageError(f"--timeout must be positive, got {options.timeout:g}")
    metadata.use_backport()
    with warnings.catch_warnings():  # a finding says so, too
        warnings.simplefilter("ignore", UserWarning)
        candidates = host().candidates()
    absent = sorted(FAMILIES - {c.distribution for c in candidates})
    every, named = options.name is None, normalised(options.name or "")
    chosen = [c for c in candidates if every or named in (normalised(c.family), c.distribution)]
    missing = [] if chosen or every else _missing(options.name, candidates, absent)
    reports: dict[str, Report] = {}
    for candidate in chosen:
        unexamined = next((r for r in reports.values() if r.state == "unexamined"), None)
        reports[candidate.distribution] = unexamined or _report(candidate, options.timeout)
    found = _safely(CORE, _core()) + _safely(CORE, _of_process(reports.values()))
    for candidate in chosen:
        found += _safely(candidate.distribution, _plugin(candidate, reports))
    found += missing
    bad = any(finding.level == "error" for _, finding in found)
    plugins = [
        {"family": c.family, "distribution": c.distribution, "version": c.version,
         "origin": c.origin, "exports": [name for _, name in c.exports],
         **asdict(reports[c.distribution])}
        for c in chosen
    ]  # fmt: skip
    if options.json:
        findings = [{"subject": about, **asdict(finding)} for about, finding in found]
        print(as_json({
            "core": VERSION, "python": platform.python_version(), "ok": not bad,
            "plugins": plugins, "not_installed": absent, "findings": findings,
        }))  # fmt: skip
    else:
        print(f"{CORE} {VERSION}, Python {platform.python_version()}")
        for plugin in plugins:
            time = f" ({plugin['seconds']:.1f} s)" if plugin["seconds"] else ""
            print(f"{plugin['distribution']} {plugin['version']}: {plugin['state']}{time}")
        if absent:
            print(f"not installed: {', '.join(absent)}")
        print("" if found else "no problem was found")
        for about, finding in found:
            print(f"{finding.level}: {finding.id}: {about} {finding.text}")
            if finding.fix:
                print(f"  {finding.fix}")
    return REFUSED if bad else OK


def _report(candidate: Candidate, timeout: float) -> Report:
    """How loading a plugin goes, in a process of its own, when it may be loaded."""
    record = host().record(candidate)
    if record.state == "discovered":
        return probe(record.distribution, timeout)
    return Report(str(record.state), record.reason)


def _safely(subject: str, check: Iterator[Found]) -> list[Found]:
    """What a check finds; when it fails, that is what was found."""
    found: list[Found] = []
    try:
        found.extend(check)
    except Exception as error:
        text = f"could not be examined ({type(error).__name__}: {error})"
        found.append((subject, Finding("check_failed", "error", text)))
    return found


def _missing(name: str, candidates: Iterable[Candidate], absent: Sequence[str]) -> list[Found]:
    """What is found of a name that no plugin has: an official one that is not installed, or a
    distribution that registers none, such as an adapter; another name is a mistake."""
    distribution = f"braintrace-{normalised(name).removeprefix('braintrace-')}"
    if distribution in absent:
        fix = how_to_install(distribution)
        return [(distribution, Finding("not_installed", "error", "is not installed.", fix))]
    if version := metadata.version_of(distribution):
        text = f"{version} is installed and is no plugin: it is imported by its own name"
        return [(distribution, Finding("no_plugin", "info", text)), *_requirements(distribution)]
    known = {c.family for c in candidates} | {n.removeprefix("braintrace-") for n in absent}
    raise UsageError(f"no plugin is called {name!r}{hint(name, known, 'plugins')}")


def _core() -> Iterator[Found]:
    """Whether the package is core's own, has what it needs, and what must have its version."""
    owners = metadata.owners(PACKAGE)
    for owner in owners:
        if owner.distribution != CORE:
            text = f"{owner.version} in {owner.origin} owns the import name {PACKAGE!r} too"
            fix = f"Run: pip uninstall {owner.distribution}. {REINSTALL}"
            yield owner.distribution, Finding("foreign_distribution", "error", text, fix)
    own = [owner for owner in owners if owner.distribution == CORE]
    if not own:
        text = "is imported, but no distribution of that name is installed"
        yield CORE, Finding("no_metadata", "warning", text, REINSTALL)
    elif (known := own[0].version) != VERSION:
        text = f"{known} is installed, but the package that is imported is {VERSION}"
        yield CORE, Finding("wrong_package", "error", text, REINSTALL)
    if len(own) > 1:
        places = " and ".join(f"{o.version} in {o.origin}" for o in own)
        yield CORE, Finding("installed_twice", "warning", f"is installed more than once: {places}")
    for distribution, _ in names.DISTRIBUTED.values():
        if (version := metadata.version_of(distribution)) not in (None, VERSION):
            text = f"{version} is installed, but it must have the version of {CORE}: "
            fix = f"Run: pip install {distribution}=={VERSION}"
            yield distribution, Finding("other_version", "error", text + VERSION, fix)
    if own:
        yield from _requirements(CORE)


def _of_process(reports: Iterable[Report]) -> Iterator[Found]:
    """What concerns every plugin: what all of them need does not load, a setting names nobody."""
    if why := next((r.reason for r in reports if r.state == "unexamined"), ""):
        yield CORE, Finding("nothing_loads", "error", f"can load no plugin, because {why}")
    for (variable, _), text in host().unknown_names().items():
        yield variable, Finding("unknown_name", "warning", text)


def _requirements(distribution: str) -> Iterator[Found]:
    for requirement, version in metadata.unmet(distribution):
        if not requirement.startswith(CORE):  # core's own bounds are a state of the plugin
            have = f"{version} is installed" if version else "it is not installed"
            fix = f'Run: pip install "{requirement}"'
            yield distribution, Finding("requirement", "error", f"needs {requirement}; {have}", fix)


def _plugin(candidate: Candidate, reports: dict[str, Report]) -> Iterator[Found]:
    subject = candidate.distribution
    report = reports[subject]
    if report.state == "disabled":
        yield subject, Finding("disabled", "info", report.reason)
        return
    if report.state not in ("loaded", "unexamined"):
        yield subject, Finding(report.state, "error", report.reason)
    for problem in report.problems:
        yield subject, Finding("exports" if "export" in problem else "account", "error", problem)
    for own in report.findings:
        yield subject, Finding(**own)
    yield from _requirements(subject)
    yield from _names(candidate)
    for other, its in reports.items():  # each loads alone, the second of both fails
        shared = ", ".join(sorted({*report.primitives} & {*its.primitives}))
        if other != subject and shared:
            text = f"and {other!r} both define {shared}; only one can be used"
            yield subject, Finding("primitive_collision", "error", text)


def _names(candidate: Candidate) -> Iterator[Found]:
    """Exported names that core, an official distribution or another plugin has."""
    subject = candidate.distribution
    for kind, name in candidate.exports:
        owner = names.OFFICIAL[kind].get(name, subject)
        rivals = [c.title for c in enabled_providers(host(), kind, name) if c is not candidate]
        if kind == "ops" and name in {*names.CORE, *names.SUBMODULES}:
            text = f"exports {name!r}, which is a name of {CORE}: core's is used"
            yield subject, Finding("name_of_core", "warning", text)
        elif owner != subject:
            text = f"exports {name!r}, which belongs to {owner!r}: this one is not used"
            yield subject, Finding("official_name", "warning", text)
        elif rivals:
            text = f"exports {name!r}, as {' and '.join(rivals)} does: none of them is used"
            fix = "Uninstall all but one, or disable the others with BRAINTRACE_DISABLE_PLUGINS"
            yield subject, Finding("name_collision", "error", text, fix)
