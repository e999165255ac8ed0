# SPDX-License-Identifier: Apache-2.0
"""What the host asks of its plugins besides primitives, each plugin isolated from the others.

The answers of the optional hooks are validated here, when they are needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..names import PLUGIN_OF_CORE
from .errors import PluginError
from .hooks import Offer, collect, kind_of, listed
from .host import __version__, brief
from .records import API, DoctorContext, Finding, HostInfo

if TYPE_CHECKING:
    from pluggy import PluginManager

    from .host import Host
    from .metadata import Candidate

HOST = HostInfo(API, __version__)


def answers(
    host: Host, candidate: Candidate, hook: str, what: str, **given: Any
) -> tuple[Any, ...]:
    """The items that one loaded plugin returns from a hook; none when it lacks the hook.

    A ``TypeError`` says that its answer is not an iterable of ``what``.
    """
    for loaded, manager in host.loaded():
        if loaded is candidate and (found := getattr(manager.hook, hook)(**given)) is not None:
            return listed(hook, what, found)
    return ()  # it may export names and have no plugin object


def conformance_cases(host: Host, family: str) -> tuple[Any, ...]:
    """See :func:`braintrace.plugins.conformance_cases`."""
    found = [c for c in host.candidates() if c.family == family]
    if not found:
        known = ", ".join(sorted({c.family for c in host.candidates()})) or "none"
        text = f"no installed plugin provides the family {family!r}; families are: {known}"
        raise PluginError(text)
    candidate = min(found, key=lambda c: host.why_disabled(c) is not None)
    host.load(candidate)
    try:
        return answers(host, candidate, "braintrace_conformance_cases", "cases", api=HOST)
    except Exception as exception:
        raise PluginError(
            f"the conformance cases of {candidate.title} cannot be had ({brief(exception)})",
            candidate.distribution,
        ) from exception


def findings(host: Host, candidate: Candidate) -> tuple[Finding, ...]:
    """What a loaded plugin's own ``braintrace_doctor`` reports; raises what it raises."""
    context = DoctorContext(
        candidate.distribution, candidate.version, candidate.origin, __version__
    )
    found = answers(host, candidate, "braintrace_doctor", "findings", context=context)
    for finding in found:
        if not isinstance(finding, Finding):
            raise TypeError(f"braintrace_doctor must return findings, got {kind_of(finding)}")
    return found


def advice(host: Host, record: Any) -> tuple[str, str] | None:
    """The first plugin with advice for a diagnostic: its family, and one line of text."""
    for candidate, manager in host.loaded():
        try:
            said = manager.hook.braintrace_explain(record=record)
            if isinstance(said, str) and len(said.strip().splitlines()) == 1:
                return candidate.family, said.strip()
            problem = "" if said is None else f"not one line of text: {kind_of(said)}"
        except Exception as exception:
            problem = brief(exception)
        if problem:
            host.trace(f"{candidate.distribution}: no advice ({problem})")
    return None


@cache
def plugin_of_core() -> Offer:
    """Core's own plugin: known without metadata, and no setting switches it off."""
    module, _, name = PLUGIN_OF_CORE.partition(":")
    return collect(getattr(import_module(module), name), __version__)


def algorithm(host: Host, name: str, base: type) -> type:
    """The learner class of a name, a subclass of ``base``: core's, or that of a plugin.

    The plugins are loaded when core has none of that name. A name that two of them offer is
    refused to both, because which one is meant would depend on the order of folders. A
    ``ValueError`` lists the names that are known.
    """
    own = _algorithms(plugin_of_core().manager, base)
    if name in own:
        return own[name]
    host.load_all(strict=False)
    offers: dict[str, dict[str, type]] = {}  # by name and title
    notes = []
    for candidate, manager in host.loaded():
        try:
            for theirs, learner in _algorithms(manager, base, own).items():
                offers.setdefault(theirs, {})[candidate.title] = learner
        except Exception as exception:
            notes.append(f"those of {candidate.title} cannot be had ({brief(exception)})")
    several = {theirs: by for theirs, by in offers.items() if len(by) > 1}
    for theirs, by in several.items():
        notes.append(f"{theirs!r} is provided by {' and '.join(by)}; none of them is used")
    if name in offers.keys() - several.keys():
        return next(iter(offers[name].values()))
    known = sorted(own.keys() | (offers.keys() - several.keys()))
    raise ValueError("; ".join([f"unknown algorithm {name!r}; known are {known}", *notes]))


def _algorithms(
    manager: PluginManager, base: type, taken: Collection[str] = ()
) -> Mapping[str, type]:
    """What one plugin returns from ``braintrace_algorithms``: new names, learner classes."""
    given = manager.hook.braintrace_algorithms(api=HOST)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"braintrace_algorithms must return learner classes by name, got {kind_of(given)}"
        )
    for name, learner in given.items():
        if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
            raise ValueError(f"{name!r} is not a name of an algorithm: a lower-case identifier is")
        if name in taken:
            raise ValueError(f"{name!r} is an algorithm of braintrace-core; choose another name")
        if not (inspect.isclass(learner) and issubclass(learner, base)):
            raise TypeError(
                f"the algorithm {name!r} must be a subclass of braintrace.ETraceAlgorithm, got "
                f"{kind_of(learner)}"
            )
    return given
