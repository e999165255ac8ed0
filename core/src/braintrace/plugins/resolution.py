# SPDX-License-Identifier: Apache-2.0
"""Who provides a public name, and the object itself."""

from __future__ import annotations

from typing import Any

from ..names import OFFICIAL
from .errors import PluginError
from .host import Host, brief
from .metadata import PUBLIC_PREFIX, Candidate
from .records import PluginState


def exported(host: Host, kind: str) -> frozenset[str]:
    """Names that some distribution exports, usable or not."""
    return frozenset(n for c in host.candidates() for k, n in c.exports if k == kind)


def available(host: Host, kind: str) -> frozenset[str]:
    """Exported names that resolve, as far as is known without importing a plugin."""
    usable = (PluginState.DISCOVERED, PluginState.LOADED)
    return frozenset(
        name
        for name in exported(host, kind)
        if len(found := enabled_providers(host, kind, name)) == 1
        and host.record(found[0]).state in usable
    )


def resolve(host: Host, kind: str, name: str) -> Any:
    """The object exported as ``name``; its plugin is loaded first.

    A ``PluginError`` says why no usable plugin provides the name.
    """
    public = PUBLIC_PREFIX[kind] + name
    found = _providers(host, kind, name)
    if not found:
        official = OFFICIAL[kind][name]
        for candidate in host.candidates():
            if candidate.distribution == official:
                host.load(candidate, public)  # says so when it cannot be used
                text = f"{public} is no name of {candidate.title}"
                text = f"{text}. Run: pip install --upgrade {official}"
                raise PluginError(text, official)
        raise not_installed(public, official)
    enabled = enabled_providers(host, kind, name)
    if len(enabled) > 1:
        titles = " and ".join(candidate.title for candidate in enabled)
        raise PluginError(
            f"{public} is provided by {titles}; none of them is used. Uninstall all but one, "
            "or disable the others with BRAINTRACE_DISABLE_PLUGINS",
            enabled[0].distribution,
        )
    candidate = (enabled or found)[0]
    host.load(candidate, public)
    if (kind, name) not in host.values:
        entry = candidate.exports[kind, name]
        try:
            host.values[kind, name] = entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as exception:
            raise PluginError(
                f"{public} is provided by {candidate.title}, whose entry point {entry.value!r} "
                f"cannot be loaded ({brief(exception)})",
                candidate.distribution,
            ) from exception
    return host.values[kind, name]


def enabled_providers(host: Host, kind: str, name: str) -> list[Candidate]:
    """Who exports a name and may be used."""
    return [c for c in _providers(host, kind, name) if not host.why_disabled(c)]


def _providers(host: Host, kind: str, name: str) -> list[Candidate]:
    """Who exports a name; an official name only its official distribution."""
    known = [c for c in host.candidates() if (kind, name) in c.exports]
    return [c for c in known if OFFICIAL[kind].get(name) in (None, c.distribution)]


def not_installed(public: str, distribution: str) -> PluginError:
    """The error about a name whose distribution is missing."""
    return PluginError(
        f"{public} is provided by {distribution!r}, which is not installed. "
        f"{how_to_install(distribution)}",
        distribution,
    )


def how_to_install(distribution: str) -> str:
    """What to run for an official plugin; the names are not on a package index yet."""
    folder = distribution.replace("braintrace-", "plugins/")
    return f"Run: pip install {distribution} (from files: its wheel, or {folder} of a checkout)"
