# SPDX-License-Identifier: Apache-2.0
"""What the host asks of its plugins besides primitives, each plugin isolated from the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from . import optional
from .errors import PluginError
from .host import __version__, brief

if TYPE_CHECKING:
    from .host import Host
    from .metadata import Candidate


def conformance_cases(host: Host, family: str) -> tuple[Any, ...]:
    """See :func:`braintrace.plugins.conformance_cases`."""
    candidate = host.of_family(family)
    host.load(candidate)
    try:
        for loaded, manager in host.loaded():
            if loaded is candidate:
                return optional.conformance_cases(manager, __version__)
    except Exception as exception:
        raise PluginError(
            f"the conformance cases of {candidate.title} cannot be had ({brief(exception)})",
            candidate.distribution,
        ) from exception
    return ()  # it exports names, but has no plugin object


def algorithms(
    host: Host, base: type, taken: Collection[str]
) -> tuple[dict[str, type], tuple[str, ...]]:
    """Learner classes of the plugins by name, and why others are not offered.

    Every plugin that may be used is loaded for it. A name that two of them offer is refused to
    both, because which one is meant would depend on the order of folders.
    """
    host.load_all(strict=False)
    offers: dict[str, list[tuple[Candidate, type]]] = {}
    problems = []
    for candidate, manager in host.loaded():
        try:
            for name, learner in optional.algorithms(manager, __version__, base, taken).items():
                offers.setdefault(name, []).append((candidate, learner))
        except Exception as exception:
            problems.append(f"those of {candidate.title} cannot be had ({brief(exception)})")
    for name, by in offers.items():
        if len(by) > 1:
            titles = " and ".join(candidate.title for candidate, _ in by)
            problems.append(f"{name!r} is provided by {titles}; none of them is used")
    return {name: by[0][1] for name, by in offers.items() if len(by) == 1}, tuple(problems)


def advice(host: Host, record: Any) -> tuple[str, str] | None:
    """The first plugin with advice for a diagnostic: its family, and what it says."""
    for candidate, manager in host.loaded():
        try:
            said = optional.advice(manager, record)
        except Exception as exception:
            host.trace(f"{candidate.distribution}: no advice ({brief(exception)})")
            continue
        if said:
            return candidate.family, said
    return None


def findings(host: Host, candidate: Candidate) -> tuple[optional.Finding, ...]:
    """What a loaded plugin's own ``braintrace_doctor`` reports; raises what it raises."""
    context = optional.DoctorContext(
        candidate.distribution, candidate.version, candidate.origin, __version__
    )
    for loaded, manager in host.loaded():
        if loaded is candidate:
            return optional.findings(manager, context)
    return ()
