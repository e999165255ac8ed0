# SPDX-License-Identifier: Apache-2.0
"""What a plugin declares and is told, what is known of it, and whether it may be used."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

API = (1, 0)
LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class PluginInfo:
    """Who a plugin is.

    Parameters
    ----------
    family
        Name of the family, that of the entry point in ``braintrace.plugins.v1``.
    api
        ``(major, minor)`` of the plugin API it was written for.
    distribution, version
        The distribution that ships it.
    exports
        Names it provides by kind, ``{"ops": (...), "nn": (...)}``, as in its entry points.

    Raises
    ------
    TypeError, ValueError
        For a field of another type, or an unknown kind of export.

    Examples
    --------
    >>> from braintrace.plugin_api import PluginInfo
    >>> PluginInfo("dense", distribution="braintrace-dense", version="0.1.0").api
    (1, 0)
    """

    family: str
    api: tuple[int, int] = API
    distribution: str = ""
    version: str = ""
    exports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_texts(self, "family", "distribution", "version")
        if not self.family:
            raise ValueError("family must not be empty")
        if not (isinstance(self.api, tuple) and [*map(type, self.api)] == [int, int]):
            raise TypeError(f"api must be (major, minor), two integers, got {self.api!r}")
        exports: Any = self.exports
        if not isinstance(exports, Mapping):
            raise TypeError(f"exports must map 'ops' and 'nn' to names, got {exports!r}")
        if unknown := sorted(set(exports) - {"ops", "nn"}):
            raise ValueError(f"exports has unknown kinds {unknown}; kinds are 'ops' and 'nn'")
        for kind, given in exports.items():
            if isinstance(given, str) or not all(isinstance(name, str) for name in given):
                raise TypeError(f"exports[{kind!r}] must be a tuple of names, got {given!r}")
        frozen = MappingProxyType({kind: tuple(given) for kind, given in exports.items()})
        object.__setattr__(self, "exports", frozen)


@dataclass(frozen=True)
class HostInfo:
    """What a hook is told about its host: plugin API and version of core.

    Parameters
    ----------
    version
        ``(major, minor)`` of the plugin API.
    core_version
        Version of ``braintrace-core``.

    Examples
    --------
    >>> from braintrace.plugin_api import HostInfo
    >>> HostInfo((1, 0), "0.1.0").core_version
    '0.1.0'
    """

    version: tuple[int, int]
    core_version: str


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
        _check_texts(self, "id", "level", "text", "fix")
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


class PluginState(enum.StrEnum):
    """How far a plugin has come.

    Examples
    --------
    >>> from braintrace.plugins import PluginState
    >>> [str(state) for state in PluginState]
    ['discovered', 'loaded', 'failed', 'incompatible', 'conflict', 'disabled']
    """

    DISCOVERED = "discovered"
    LOADED = "loaded"
    FAILED = "failed"
    INCOMPATIBLE = "incompatible"
    CONFLICT = "conflict"
    DISABLED = "disabled"


@dataclass(frozen=True)
class PluginRecord:
    """One plugin: who it is, its state, and why it is not used when it is not.

    Attributes
    ----------
    family, distribution, version, origin
        Its names, version, and where it lies.
    state
        A :class:`PluginState`.
    exports
        Public names that it provides, such as ``"braintrace.matmul"``.
    primitives
        Names of the primitives it registered (once loaded).
    reason
        Why it is not used: the end of "``<distribution>``, which ..."; empty when it can be.
    exception
        What it raised, when it failed.
    load_time
        Seconds that loading took, ``None`` before.
    problems
        Findings that do not prevent its use, such as exports that differ from the metadata.

    Examples
    --------
    >>> import braintrace
    >>> record = next(r for r in braintrace.plugins.records() if r.family == "dense")
    >>> record.distribution, "braintrace.matmul" in record.exports
    ('braintrace-dense', True)
    """

    family: str
    distribution: str
    version: str
    origin: str
    state: PluginState
    exports: tuple[str, ...] = ()
    primitives: tuple[str, ...] = ()
    reason: str = ""
    exception: BaseException | None = None
    load_time: float | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Selection of plugins by family or distribution name.

    ``allow`` is ``None`` (every plugin) or the names that may be used; ``disable`` holds names
    that may not, or ``"*"``. ``strict``: ``load_all`` raises when a plugin did not load.
    ``trace``: report every step on standard error.
    """

    allow: frozenset[str] | None = None
    disable: frozenset[str] = frozenset()
    strict: bool = False
    trace: bool = False

    def __post_init__(self) -> None:
        for what in ("allow", "disable"):
            given = getattr(self, what)
            if isinstance(given, str):
                raise TypeError(f"{what} must be an iterable of names, got the string {given!r}")
            if given is not None or what == "disable":
                object.__setattr__(self, what, names(given))

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that the ``BRAINTRACE_*_PLUGINS`` variables ask for."""
        allow = os.environ.get("BRAINTRACE_PLUGINS")
        return cls(
            allow=None if allow is None else names(allow.split(",")),
            disable=names(os.environ.get("BRAINTRACE_DISABLE_PLUGINS", "").split(",")),
            strict=_is_on("BRAINTRACE_STRICT_PLUGINS"),
            trace=_is_on("BRAINTRACE_TRACE_PLUGINS"),
        )

    def why_disabled(self, *aliases: str) -> str | None:
        """Why a plugin known by ``aliases`` may not be used, or ``None`` when it may."""
        wanted = names(aliases)
        if "*" in self.disable or wanted & self.disable:
            return (
                "is disabled (by BRAINTRACE_DISABLE_PLUGINS or braintrace.plugins.configure); "
                "take it off that list to use it"
            )
        if self.allow is not None and not wanted & self.allow:
            return (
                "is disabled: it is not among the allowed plugins (BRAINTRACE_PLUGINS or "
                "braintrace.plugins.configure); add it to that list to use it"
            )
        return None


def normalised(name: str) -> str:
    """A family or distribution name as lists and comparisons write it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def names(given: Iterable[str]) -> frozenset[str]:
    """The normalised names in ``given``, blanks left out."""
    return frozenset(normalised(name) for name in given if name.strip())


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off")


def _check_texts(record: Any, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(record, name), str):
            raise TypeError(f"{name} must be a string, got {getattr(record, name)!r}")
