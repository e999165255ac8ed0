# SPDX-License-Identifier: Apache-2.0
"""The optional hooks of one plugin: asked when they are needed, their answers validated."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pluggy

from .hooks import API, HostInfo, kind_of

LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """Something about an installation that ``braintrace doctor`` reports.

    Parameters
    ----------
    id
        Short name of the kind of finding, an identifier such as ``"blas_missing"``.
    level
        ``"error"`` (the exit status becomes 1), ``"warning"`` or ``"info"``.
    text
        What was found, for people.
    fix
        What to do about it, if anything.

    Raises
    ------
    TypeError, ValueError
        For a field of another type, an empty text, or an unknown level.

    Examples
    --------
    >>> from braintrace.plugin_api import Finding
    >>> Finding("no_gpu", "info", "no GPU was found").level
    'info'
    """

    id: str
    level: str
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "level", "text", "fix"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, got {getattr(self, name)!r}")
        if not self.id.isidentifier():
            raise ValueError(f"id must be an identifier, got {self.id!r}")
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        if not self.text.strip():
            raise ValueError("text must not be empty")


@dataclass(frozen=True)
class DoctorContext:
    """What ``braintrace_doctor`` is told: the plugin's own distribution, and its host.

    Parameters
    ----------
    distribution, version, origin
        The plugin's own distribution, its version, and where it lies.
    core_version
        Version of ``braintrace-core``.
    api
        ``(major, minor)`` of the plugin API.

    Examples
    --------
    >>> from braintrace.plugin_api import DoctorContext
    >>> DoctorContext("example-scale", "1.0", "", "0.1.0").api
    (1, 0)
    """

    distribution: str
    version: str
    origin: str
    core_version: str
    api: tuple[int, int] = API


def algorithms(
    manager: pluggy.PluginManager, core_version: str, base: type, taken: Collection[str]
) -> dict[str, type]:
    """Learner classes by name, from ``braintrace_algorithms``.

    Each is a subclass of ``base``, and no name is one of those ``taken``.

    Raises
    ------
    TypeError, ValueError
        When the answer is not a mapping from new, valid names to learner classes.
    """
    given = _answer(manager, "braintrace_algorithms", api=HostInfo(API, core_version))
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"braintrace_algorithms must return learner classes by name, got {kind_of(given)}"
        )
    return {
        _checked_name(name, taken): _checked_learner(name, value, base)
        for name, value in given.items()
    }


def _checked_name(name: object, taken: Collection[str]) -> str:
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
        raise ValueError(f"{name!r} is not a name of an algorithm: a lower-case identifier is")
    if name in taken:
        raise ValueError(f"{name!r} is an algorithm of braintrace-core; choose another name")
    return name


def _checked_learner(name: object, value: object, base: type) -> type:
    if not (inspect.isclass(value) and issubclass(value, base)):
        raise TypeError(
            f"the algorithm {name!r} must be a subclass of braintrace.ETraceAlgorithm, got "
            f"{kind_of(value)}"
        )
    return value


def conformance_cases(manager: pluggy.PluginManager, core_version: str) -> tuple[Any, ...]:
    """The cases of ``braintrace_conformance_cases``.

    Raises
    ------
    TypeError
        When the answer is not an iterable of cases.
    """
    host = HostInfo(API, core_version)
    return _listed("cases", _answer(manager, "braintrace_conformance_cases", api=host),
                   "braintrace_conformance_cases")  # fmt: skip


def findings(manager: pluggy.PluginManager, context: DoctorContext) -> tuple[Finding, ...]:
    """What ``braintrace_doctor`` found.

    Raises
    ------
    TypeError
        When the answer is not an iterable of :class:`Finding`.
    """
    answer = _answer(manager, "braintrace_doctor", context=context)
    found = _listed("findings", answer, "braintrace_doctor")
    for finding in found:
        if not isinstance(finding, Finding):
            raise TypeError(f"braintrace_doctor must return findings, got {kind_of(finding)}")
    return found


def advice(manager: pluggy.PluginManager, record: Any) -> str | None:
    """The sentence of ``braintrace_explain`` about a diagnostic, if it has one.

    Raises
    ------
    TypeError
        When the answer is not one line of text.
    """
    given = _answer(manager, "braintrace_explain", record=record)
    if given is None:
        return None
    if not isinstance(given, str) or len(given.strip().splitlines()) != 1:
        raise TypeError(f"braintrace_explain must return one line of text, got {kind_of(given)}")
    return given.strip()


def _answer(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> Any:
    """The one answer to a hook; ``None`` when the plugin does not implement it."""
    found = getattr(manager.hook, hook)(**arguments)
    return (found[0] if found else None) if isinstance(found, list) else found


def _listed(what: str, given: object, hook: str) -> tuple[Any, ...]:
    if given is None:
        return ()
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise TypeError(f"{hook} must return {what}, got {kind_of(given)}")
    return tuple(given)
