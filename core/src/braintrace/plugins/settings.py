# SPDX-License-Identifier: Apache-2.0
"""Which plugins may be used: environment variables, and what ``configure`` changes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass


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
        for field in ("allow", "disable"):
            given = getattr(self, field)
            if isinstance(given, str):
                raise TypeError(f"{field} must be an iterable of names, got the string {given!r}")
            if given is not None or field == "disable":
                object.__setattr__(self, field, names(given))

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
