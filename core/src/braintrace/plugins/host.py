# SPDX-License-Identifier: Apache-2.0
"""Discovery and loading, with every plugin isolated from the others.

Plugins are imported and asked *outside* the lock (holding a lock there deadlocks against the
import system's own); their validated declarations are committed under it, in one step.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import threading
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..names import OFFICIAL
from .errors import IncompatibleError, PluginError
from .metadata import PLUGIN_GROUP, Candidate, package_of, scan
from .records import PluginInfo, PluginRecord, PluginState, Settings, normalised

if TYPE_CHECKING:
    import pluggy

    from ..ops.primitive import ETPPrimitive, Restorer
    from ..ops.spec import ETPPrimitiveSpec
    from .hooks import Offer

# Another distribution may have written over the package: the doctor still has to run.
__version__: str = getattr(sys.modules["braintrace"], "__version__", "0+unknown")

#: Families of the official distributions, which are theirs whoever names one.
OFFICIAL_FAMILIES = {
    distribution.removeprefix("braintrace-"): distribution
    for providers in OFFICIAL.values()
    for distribution in providers.values()
}

_API_GROUP = f"{PLUGIN_GROUP}1"


class Host:
    """The plugins of one process.

    ``scanned`` are the installed ones (``None``: found from their metadata on first need).
    ``restorer`` finds the primitive of a pickle (``None``: among those registered in the process).
    """

    def __init__(
        self,
        settings: Settings,
        scanned: tuple[Candidate, ...] | None = None,
        restorer: Restorer | None = None,
    ) -> None:
        self.settings = settings
        self.values: dict[tuple[str, str], Any] = {}  # objects exported, by kind and name
        self._registration: dict[str, Any] = {} if restorer is None else {"restorer": restorer}
        self._lock = threading.RLock()
        self._scanned = scanned
        self._in_process: tuple[Candidate, ...] = ()
        self._outcomes: dict[str, PluginRecord] = {}
        self._primitives: dict[ETPPrimitiveSpec, ETPPrimitive] = {}
        self._managers: dict[str, pluggy.PluginManager] = {}
        self._here = threading.local()
        self._told: set[tuple[str, str]] = set()

    def candidates(self) -> tuple[Candidate, ...]:
        """Every distribution that declares plugin entry points; scans on first need."""
        if self._scanned is None:
            found = scan(__version__)
            self.trace(f"found {', '.join(c.distribution for c in found) or 'no plugin'}")
            self._scanned = found
            self._warn_of_unknown_names()
        return self._scanned + self._in_process

    def records(self) -> tuple[PluginRecord, ...]:
        """One record per plugin, sorted by family."""
        records = map(self.record, self.candidates())
        return tuple(sorted(records, key=lambda r: (r.family, r.distribution)))

    def record(self, candidate: Candidate) -> PluginRecord:
        """What metadata and settings say of a plugin, then how loading it ended."""
        now = candidate.record
        reasons = {
            PluginState.DISABLED: self.why_disabled(candidate),
            PluginState.FAILED: candidate.unreadable
            and f"has metadata that cannot be read ({candidate.unreadable}); install it again",
            PluginState.CONFLICT: self._why_not_used(candidate),
            PluginState.INCOMPATIBLE: _why_incompatible(candidate),
        }
        for state, reason in reasons.items():
            if reason:
                return replace(now, state=state, reason=reason)
        known = self._outcomes.get(candidate.distribution, now)
        return replace(known, version=now.version, origin=now.origin, exports=now.exports)

    def _why_not_used(self, candidate: Candidate) -> str:
        """What is said of a family of which there are several; an official one is its owner's."""
        family = normalised(candidate.family)
        rivals = [
            other
            for other in self.candidates()
            if normalised(other.family) == family
            and other.distribution != candidate.distribution
            and not self.why_disabled(other)
        ]
        owner = OFFICIAL_FAMILIES.get(family)
        if not rivals or candidate.distribution == owner:
            return ""
        titles = " and ".join(other.title for other in rivals)
        if owner in {other.distribution for other in rivals}:
            return f"is not used: the family {family!r} is that of {owner!r}. Uninstall it"
        return (
            f"is not used: {titles} provides the family {candidate.family!r} too. Uninstall "
            "one of them, or disable one with BRAINTRACE_DISABLE_PLUGINS"
        )

    def unknown_names(self) -> dict[tuple[str, str], str]:
        """Names in the settings that no plugin has, by variable and name, and what is said."""
        known = {n for c in self.candidates() for n in (normalised(c.family), c.distribution)}
        known |= {"*", *OFFICIAL_FAMILIES, *OFFICIAL_FAMILIES.values()}
        given = {
            "BRAINTRACE_PLUGINS": self.settings.allow or frozenset(),
            "BRAINTRACE_DISABLE_PLUGINS": self.settings.disable,
        }
        found = {}
        for variable, listed in given.items():
            for name in sorted(listed - known):
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                text = f"names {name!r}, but no plugin is called so{hint}"
                found[variable, name] = text
        return found

    def _warn_of_unknown_names(self) -> None:
        """Once for each name, as a misspelt one lets a plugin pass, or none."""
        for key, text in self.unknown_names().items():
            if key not in self._told:
                self._told.add(key)
                argument = "allow" if key[0] == "BRAINTRACE_PLUGINS" else "disable"
                whose = f"{key[0]} or braintrace.plugins.configure({argument}=...)"
                warnings.warn(f"{whose} {text}", UserWarning, stacklevel=3)

    def why_disabled(self, candidate: Candidate) -> str | None:
        """Why a plugin may not be used, ``None`` when it may."""
        return self.settings.why_disabled(candidate.family, candidate.distribution)

    def loaded(self) -> list[tuple[Candidate, pluggy.PluginManager]]:
        """The plugins in use with their hooks, in the order of their names."""
        return [
            (c, self._managers[c.distribution])
            for c in sorted(self.candidates(), key=lambda c: (c.family, c.distribution))
            if c.distribution in self._managers and self.record(c).state is PluginState.LOADED
        ]

    def load(self, candidate: Candidate, used: str | None = None) -> None:
        """Load a plugin and commit what it declares, unless that was done before.

        A ``PluginError`` says that it cannot be used; ``used`` is what the text says it provides.
        """
        record = self.record(candidate)
        if record.state is PluginState.DISCOVERED:
            self._attempt(candidate)
            record = self.record(candidate)
        if record.state is not PluginState.LOADED:
            what = used or f"the plugin family {candidate.family!r}"
            raise PluginError(
                f"{what} is provided by {candidate.title}, which {record.reason}",
                candidate.distribution,
            ) from record.exception

    def load_all(self, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """Load every plugin that may be used; see :func:`braintrace.plugins.load_all`."""
        failures = []
        for candidate in self.candidates():
            if not self.why_disabled(candidate):
                try:
                    self.load(candidate)
                except PluginError as error:
                    failures.append(error)
        if failures and (self.settings.strict if strict is None else strict):
            lines = "\n".join(f"  {error}" for error in failures)
            raise PluginError(
                f"{len(failures)} plugin(s) did not load:\n{lines}", failures[0].provider
            ) from failures[0]
        return self.records()

    def _attempt(self, candidate: Candidate) -> None:
        """Load a plugin; whatever it raises becomes its record."""
        key, start = candidate.distribution, time.perf_counter()
        under_way: set[str] = self._here.__dict__.setdefault("loading", set())
        if key in under_way:
            raise PluginError(
                f"{candidate.title} uses its own primitives or names while it is being imported; "
                "it may do so only when one of its functions is called",
                key,
            )
        under_way.add(key)
        offer: Offer | None = None
        ended: dict[str, Any] = {"state": PluginState.LOADED}
        try:
            if candidate.plugins:
                offer = self._ask(candidate)
                ended["problems"] = _problems(candidate, offer.info)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            state, reason = PluginState.FAILED, f"failed to load ({brief(error)})"
            if why := why_nothing_loads():
                reason = f"cannot be loaded, because {why}"
            if isinstance(error, IncompatibleError):
                state, reason = PluginState.INCOMPATIBLE, _why_incompatible(candidate, str(error))
            ended = {"state": state, "reason": reason, "exception": error}
        finally:
            under_way.discard(key)
        record = replace(candidate.record, load_time=time.perf_counter() - start, **ended)
        with self._lock:
            if key not in self._outcomes:
                record = self._committed(candidate, record, offer) if offer else record
                self._outcomes[key] = record
                self.trace(f"{key}: {record.state} {record.reason}".rstrip())

    def _ask(self, candidate: Candidate) -> Offer:
        """Import a plugin and collect its declarations."""
        from . import hooks

        self.trace(f"{candidate.distribution}: importing {candidate.plugins[0].value}")
        offer = hooks.collect(candidate.plugins[0].load(), __version__)
        if offer.info.family != candidate.family:
            raise ValueError(
                f"braintrace_plugin_info names the family {offer.info.family!r}, its entry point "
                f"{candidate.family!r}"
            )
        return offer

    def _committed(self, candidate: Candidate, record: PluginRecord, offer: Offer) -> PluginRecord:
        """Register everything that a plugin declares, or nothing."""
        from ..base.versions import hide_frames
        from ..ops import primitive as registry

        owner = package_of(candidate.plugins[0])
        with registry._LOCK:
            for spec in offer.specs:
                known = registry.find_primitive(spec.name)
                if known is not None and known.owner != owner:
                    who = f"its primitive {spec.name!r} is registered by {known.owner!r}"
                    reason = f"is not used: {who}. Uninstall one of them"
                    return replace(record, state=PluginState.CONFLICT, reason=reason)
            for spec in offer.specs:
                self._register(spec, owner)
        self._managers[candidate.distribution] = offer.manager
        if getattr(sys.modules.get(owner), "__file__", None) and candidate not in self._in_process:
            hide_frames(sys.modules[owner])  # diagnostics name the line that uses the plugin
        return replace(record, primitives=tuple(spec.name for spec in offer.specs))

    def primitive_of(self, spec: ETPPrimitiveSpec) -> ETPPrimitive:
        """The registered primitive of a specification; loads the plugin that owns it first.

        A ``PluginError`` says that this plugin cannot be used or does not declare it.
        """
        if (primitive := self._primitives.get(spec)) is not None:
            return primitive
        package = getattr(spec.impl, "__module__", "").partition(".")[0]
        known, owners = self.find_primitive(spec.name, package), self._of_package(package)
        if spec not in self._primitives and owners and known is None:
            text = f"the primitive {spec.name!r} is not among those that {owners[0].title} declares"
            raise PluginError(f"{text} in braintrace_primitives", owners[0].distribution)
        return self._primitives.get(spec) or self._register(spec, package or None)

    def find_primitive(self, name: str, package: str) -> ETPPrimitive | None:
        """The primitive of a name; loads the plugins of ``package``, which owns it, first."""
        from ..ops.primitive import find_primitive

        for candidate in self._of_package(package):
            self.load(candidate, f"the primitive {name!r}")
        return find_primitive(name)

    def _of_package(self, package: str) -> list[Candidate]:
        return [c for c in self.candidates() if c.package == package]

    def _register(self, spec: ETPPrimitiveSpec, owner: str | None) -> ETPPrimitive:
        from ..ops.primitive import register_primitive_spec

        primitive = register_primitive_spec(spec, owner=owner, **self._registration)
        self._primitives[spec] = primitive
        return primitive

    def register(self, plugin: object) -> PluginRecord:
        """Add a plugin object of this process; see :func:`braintrace.plugins.register`."""
        from . import hooks

        for candidate in self._in_process:
            if candidate.plugins[0].load() is plugin:
                return self.record(candidate)
        try:
            info = hooks.collect(plugin, __version__).info
        except Exception as exception:
            raise PluginError(f"{plugin!r:.80} is not a plugin: {brief(exception)}") from exception
        module, name = type(plugin).__module__, info.distribution or info.family
        entry: Any = SimpleNamespace(
            name=info.family, value=f"{module}:{type(plugin).__name__}", group=_API_GROUP,
            load=lambda: plugin,
        )  # fmt: skip
        candidate = Candidate(name, info.version, module, plugins=(entry,))
        with self._lock:
            if any(c.distribution == name for c in self.candidates()):
                text = f"the distribution {name!r} of this plugin is known already"
                raise PluginError(text, name)
            self._in_process += (candidate,)
        try:
            self.load(candidate)
        except PluginError:
            with self._lock:
                self._in_process = tuple(c for c in self._in_process if c is not candidate)
                self._outcomes.pop(name, None)
            raise
        return self.record(candidate)

    def configure(self, **changes: Any) -> None:
        """Replace fields of the settings; names are looked up anew."""
        with self._lock:
            self.settings = replace(self.settings, **changes)
            self._primitives = {}
        if self._scanned is not None:  # else when it is
            self._warn_of_unknown_names()

    def refresh(self) -> tuple[PluginRecord, ...]:
        """Read the metadata again and give plugins that did not load another chance."""
        importlib.invalidate_caches()
        with self._lock:
            loaded = PluginState.LOADED
            self._outcomes = {k: o for k, o in self._outcomes.items() if o.state is loaded}
            self.values = {}
            self._scanned = None
        return self.records()

    def trace(self, text: str) -> None:
        """Report a step on standard error, when the settings ask for it."""
        if self.settings.trace:
            print(f"braintrace.plugins: {text}", file=sys.stderr)


def _why_incompatible(candidate: Candidate, api: str = "") -> str:
    """Why this core cannot use a plugin, which may say itself that it speaks another ``api``."""
    groups = {entry.group for entry in candidate.plugins}
    if not api and groups and _API_GROUP not in groups:
        api = ", ".join(sorted(group.removeprefix(PLUGIN_GROUP) for group in groups))
    core = f"but braintrace-core {__version__}"
    if not candidate.core_admitted:
        why = f"needs braintrace-core{candidate.needs_core}, {core} is installed"
    elif api:
        why = f"is written for plugin API {api}, {core} offers 1.0"
    else:
        return ""
    return f"{why}. Run: pip install --upgrade braintrace-core {candidate.distribution}"


def _problems(candidate: Candidate, info: PluginInfo) -> tuple[str, ...]:
    """Where a plugin's own account of itself differs from its metadata."""
    declared = sorted({(kind, name) for kind, names in info.exports.items() for name in names})
    pairs = (
        ("distribution", info.distribution, candidate.distribution),
        ("version", info.version, candidate.version),
        ("exports", declared, sorted(candidate.exports)),
    )
    return tuple(
        f"gives {said!r} as its {what} in braintrace_plugin_info and {known!r} in its metadata; "
        "make them the same and install it again"
        for what, said, known in pairs
        if said and said != known
    )


def why_nothing_loads() -> str:
    """Why no plugin can be loaded, whichever it is: what all of them need cannot be imported."""
    try:
        importlib.import_module("brainstate")
    except Exception as error:
        why = f"brainstate itself cannot be imported ({brief(error)})"
        if "brainevent" in str(error):  # which it imports, and which keeps a cache at home
            why += ". Set BRAINEVENT_CACHE_DIR to a folder that can be written to"
        return why
    return ""


def brief(exception: BaseException) -> str:
    """The kind of an exception and the first line of its text."""
    text = str(exception).strip().splitlines()
    name = type(exception).__name__
    return f"{name}: {text[0]}" if text else name
