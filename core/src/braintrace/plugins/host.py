# SPDX-License-Identifier: Apache-2.0
"""Discovery, loading and name resolution, with every plugin isolated from the others.

Plugins are imported and asked *outside* the lock (holding a lock there deadlocks against the
import system's own); their validated declarations are committed under it, in one step.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..names import OFFICIAL
from . import errors
from .errors import PluginError
from .metadata import PLUGIN_GROUP, Candidate, Entry, package_of, providers, scan
from .records import PluginRecord, PluginState
from .settings import Settings

if TYPE_CHECKING:
    import pluggy

    from ..ops.primitive import ETPPrimitive, Restorer
    from ..ops.spec import ETPPrimitiveSpec
    from .hooks import Offer

# Another distribution may have written over the package: the doctor still has to run.
__version__: str = getattr(sys.modules["braintrace"], "__version__", "0+unknown")

_PUBLIC_PREFIX = {"ops": "braintrace.", "nn": "braintrace.nn."}
_API_GROUP = f"{PLUGIN_GROUP}1"


@dataclass(frozen=True)
class Outcome:
    """How loading one plugin ended."""

    state: PluginState
    reason: str = ""
    exception: BaseException | None = None
    load_time: float | None = None
    primitives: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _InProcess:
    """The entry point of a plugin object that was handed over directly."""

    name: str
    value: str
    plugin: object
    group: str = _API_GROUP

    def load(self) -> object:
        return self.plugin


class Host:
    """The plugins of one process.

    Parameters
    ----------
    settings
        Which plugins may be used.
    scanned
        The installed plugins; ``None``: found from their metadata on first need.
    restorer
        Finds the primitive of a pickle; ``None``: among those registered in the process.
    """

    errors = errors

    def __init__(
        self,
        settings: Settings,
        scanned: tuple[Candidate, ...] | None = None,
        restorer: Restorer | None = None,
    ) -> None:
        self.settings = settings
        self._registration: dict[str, Any] = {} if restorer is None else {"restorer": restorer}
        self._lock = threading.RLock()
        self._scanned = scanned
        self._in_process: tuple[Candidate, ...] = ()
        self._outcomes: dict[str, Outcome] = {}
        self._primitives: dict[ETPPrimitiveSpec, ETPPrimitive] = {}
        self._values: dict[tuple[str, str], Any] = {}
        self._managers: dict[str, pluggy.PluginManager] = {}
        self._here = threading.local()

    # --- what is known -----------------------------------------------------------------------

    def candidates(self) -> tuple[Candidate, ...]:
        """Every distribution that declares plugin entry points; scans on first need."""
        if self._scanned is None:
            found = scan(__version__)
            self.trace(f"found {', '.join(c.distribution for c in found) or 'no plugin'}")
            self._scanned = found
        return self._scanned + self._in_process

    def records(self) -> tuple[PluginRecord, ...]:
        """One record per plugin, sorted by family."""
        records = (self._record(candidate) for candidate in self.candidates())
        return tuple(sorted(records, key=lambda r: (r.family, r.distribution)))

    def exported(self, kind: str) -> frozenset[str]:
        """Names that some distribution exports, usable or not."""
        return frozenset(n for c in self.candidates() for k, n in c.exports if k == kind)

    def available(self, kind: str) -> frozenset[str]:
        """Exported names that resolve, as far as is known without importing a plugin."""
        usable = (PluginState.DISCOVERED, PluginState.LOADED)
        return frozenset(
            name
            for name in self.exported(kind)
            if len(found := self._enabled_providers(kind, name)) == 1
            and self._record(found[0][0]).state in usable
        )

    def _record(self, candidate: Candidate) -> PluginRecord:
        outcome = self._verdict(candidate)
        return PluginRecord(
            family=candidate.family,
            distribution=candidate.distribution,
            version=candidate.version,
            origin=candidate.origin,
            exports=tuple(_PUBLIC_PREFIX[kind] + name for kind, name in candidate.exports),
            **vars(outcome),
        )

    def _verdict(self, candidate: Candidate) -> Outcome:
        """The state of a plugin: what metadata and settings say, then how loading ended."""
        if why := self._why_disabled(candidate):
            return Outcome(PluginState.DISABLED, why)
        if rivals := self._rivals(candidate):
            return Outcome(PluginState.CONFLICT, _family_conflict(candidate, rivals))
        if why := _why_incompatible(candidate):
            return Outcome(PluginState.INCOMPATIBLE, why)
        return self._outcomes.get(candidate.distribution, Outcome(PluginState.DISCOVERED))

    def _why_disabled(self, candidate: Candidate) -> str | None:
        return self.settings.why_disabled(candidate.family, candidate.distribution)

    def _rivals(self, candidate: Candidate) -> list[Candidate]:
        return [
            other
            for other in self.candidates()
            if other.distribution != candidate.distribution
            and other.family == candidate.family
            and not self._why_disabled(other)
        ]

    # --- names -------------------------------------------------------------------------------

    def resolve(self, kind: str, name: str) -> Any:
        """The object exported as ``name``; its plugin is loaded first.

        Raises
        ------
        PluginError
            When no usable plugin provides the name; the text says why.
        """
        candidate, entry = self._provider(kind, name)
        public = _PUBLIC_PREFIX[kind] + name
        self.load(candidate, public)
        if (kind, name) not in self._values:
            self._values[kind, name] = self._load_value(candidate, entry, public)
        return self._values[kind, name]

    def _provider(self, kind: str, name: str) -> tuple[Candidate, Entry]:
        public = _PUBLIC_PREFIX[kind] + name
        found = self._providers(kind, name)
        if not found:
            official = OFFICIAL[kind][name]
            raise PluginError(
                f"{public} is provided by {official!r}, which is not installed. "
                f"Run: pip install {official}",
                official,
            )
        enabled = self._enabled_providers(kind, name)
        if len(enabled) > 1:
            titles = " and ".join(c.title for c, _ in enabled)
            raise PluginError(
                f"{public} is provided by {titles}; none of them is used. Uninstall all but one, "
                "or disable the others with BRAINTRACE_DISABLE_PLUGINS",
                enabled[0][0].distribution,
            )
        return (enabled or found)[0]

    def _providers(self, kind: str, name: str) -> list[tuple[Candidate, Entry]]:
        """Who exports a name; an official name only its official distribution."""
        official = OFFICIAL[kind].get(name)
        return [
            (candidate, entry)
            for candidate, entry in providers(self.candidates(), kind, name)
            if official in (None, candidate.distribution)
        ]

    def _enabled_providers(self, kind: str, name: str) -> list[tuple[Candidate, Entry]]:
        found = self._providers(kind, name)
        return [(c, entry) for c, entry in found if not self._why_disabled(c)]

    def _load_value(self, candidate: Candidate, entry: Entry, public: str) -> Any:
        try:
            return entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as exception:
            raise PluginError(
                f"{public} is provided by {candidate.title}, whose entry point {entry.value!r} "
                f"cannot be loaded ({brief(exception)})",
                candidate.distribution,
            ) from exception

    # --- loading -----------------------------------------------------------------------------

    def load(self, candidate: Candidate, used: str | None = None) -> None:
        """Load a plugin and commit what it declares, unless that was done before.

        Raises
        ------
        PluginError
            When the plugin cannot be used; ``used`` is what the text says it provides.
        """
        verdict = self._verdict(candidate)
        if verdict.state is PluginState.DISCOVERED:
            self._attempt(candidate)
            verdict = self._verdict(candidate)
        if verdict.state is not PluginState.LOADED:
            what = used or f"the plugin family {candidate.family!r}"
            raise PluginError(
                f"{what} is provided by {candidate.title}, which {verdict.reason}",
                candidate.distribution,
            ) from verdict.exception

    def load_all(self, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """Load every plugin that may be used; see :func:`braintrace.plugins.load_all`."""
        failures = []
        for candidate in self.candidates():
            if self._why_disabled(candidate):
                continue
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
        key = candidate.distribution
        under_way: set[str] = self._here.__dict__.setdefault("loading", set())
        if key in under_way:
            raise PluginError(
                f"{candidate.title} uses its own primitives or names while it is being imported; "
                "it may do so only when one of its functions is called",
                key,
            )
        under_way.add(key)
        start = time.perf_counter()
        try:
            outcome, offer = self._ask(candidate)
        finally:
            under_way.discard(key)
        outcome = replace(outcome, load_time=time.perf_counter() - start)
        with self._lock:
            if key not in self._outcomes:
                self._outcomes[key] = self._committed(candidate, outcome, offer)
                self.trace(f"{key}: {self._outcomes[key].state} {outcome.reason}".rstrip())

    def _ask(self, candidate: Candidate) -> tuple[Outcome, Offer | None]:
        """Import a plugin and collect its declarations; whatever it raises becomes an outcome."""
        if not candidate.plugins:
            return Outcome(PluginState.LOADED), None
        try:
            from . import hooks

            self.trace(f"{candidate.distribution}: importing {candidate.plugins[0].value}")
            offer = hooks.collect(candidate.plugins[0].load(), __version__)
            if offer.info.family != candidate.family:
                raise ValueError(
                    f"braintrace_plugin_info names the family {offer.info.family!r}, its entry "
                    f"point {candidate.family!r}"
                )
        except KeyboardInterrupt:
            raise
        except BaseException as exception:
            return _failure(candidate, exception), None
        return Outcome(PluginState.LOADED, problems=_problems(candidate, offer)), offer

    def _committed(self, candidate: Candidate, outcome: Outcome, offer: Offer | None) -> Outcome:
        """Register everything that a plugin declares, or nothing."""
        if offer is None:
            return outcome
        from ..ops import primitive as registry

        owner = package_of(candidate.plugins[0])
        with registry._LOCK:
            for spec in offer.specs:
                known = registry.find_primitive(spec.name)
                if known is not None and known.owner != owner:
                    reason = (
                        f"is not used: its primitive {spec.name!r} is registered by "
                        f"{known.owner!r}. Uninstall one of them"
                    )
                    return replace(outcome, state=PluginState.CONFLICT, reason=reason)
            for spec in offer.specs:
                self._primitives[spec] = registry.register_primitive_spec(
                    spec, owner=owner, **self._registration
                )
        self._managers[candidate.distribution] = offer.manager
        if candidate not in self._in_process:
            _hide_frames(owner)
        return replace(outcome, primitives=tuple(spec.name for spec in offer.specs))

    # --- primitives --------------------------------------------------------------------------

    def primitive_of(self, spec: ETPPrimitiveSpec) -> ETPPrimitive:
        """The registered primitive of a specification; loads the plugin that owns it first.

        Raises
        ------
        PluginError
            When the plugin that owns it cannot be used or does not declare it.
        """
        primitive = self._primitives.get(spec)
        return self._acquire(spec) if primitive is None else primitive

    def _acquire(self, spec: ETPPrimitiveSpec) -> ETPPrimitive:
        from ..ops import primitive as registry

        package = getattr(spec.impl, "__module__", "").partition(".")[0]
        owners = [c for c in self.candidates() if c.package == package]
        for candidate in owners:
            self.load(candidate, f"the primitive {spec.name!r}")
        if spec in self._primitives:
            return self._primitives[spec]
        if owners and registry.find_primitive(spec.name) is None:
            raise PluginError(
                f"the primitive {spec.name!r} is not among those that {owners[0].title} declares "
                "in braintrace_primitives",
                owners[0].distribution,
            )
        primitive = registry.register_primitive_spec(
            spec, owner=package or None, **self._registration
        )
        self._primitives[spec] = primitive
        return primitive

    def find_primitive(self, name: str, owner: str) -> ETPPrimitive | None:
        """The primitive of a name; loads the plugins whose package is ``owner`` first.

        Raises
        ------
        PluginError
            When a plugin of that package cannot be used.
        """
        from ..ops import primitive as registry

        for candidate in self.candidates():
            if candidate.package == owner:
                self.load(candidate, f"the primitive {name!r}")
        return registry.find_primitive(name)

    def loaded(self) -> list[tuple[Candidate, pluggy.PluginManager]]:
        """The plugins in use with their hooks, in the order of their names."""
        found = sorted(self.candidates(), key=lambda c: (c.family, c.distribution))
        return [
            (c, self._managers[c.distribution])
            for c in found
            if c.distribution in self._managers and self._verdict(c).state is PluginState.LOADED
        ]

    def of_family(self, family: str) -> Candidate:
        """The distribution that provides a family, an enabled one if there is any.

        Raises
        ------
        PluginError
            When there is none.
        """
        found = [c for c in self.candidates() if c.family == family]
        enabled = [c for c in found if not self._why_disabled(c)]
        if not found:
            known = ", ".join(sorted({c.family for c in self.candidates()})) or "none"
            raise PluginError(
                f"no installed plugin provides the family {family!r}; families are: {known}"
            )
        return (enabled or found)[0]

    # --- changes -----------------------------------------------------------------------------

    def register(self, plugin: object) -> PluginRecord:
        """Add a plugin object of this process; see :func:`braintrace.plugins.register`."""
        from . import hooks

        for candidate in self._in_process:
            if candidate.plugins[0].load() is plugin:
                return self._record(candidate)
        try:
            info = hooks.collect(plugin, __version__).info
        except Exception as exception:
            raise PluginError(f"{plugin!r:.80} is not a plugin: {brief(exception)}") from exception
        candidate = _in_process_candidate(plugin, info)
        with self._lock:
            if any(c.distribution == candidate.distribution for c in self.candidates()):
                raise PluginError(
                    f"the distribution {candidate.distribution!r} of this plugin is known already",
                    candidate.distribution,
                )
            self._in_process += (candidate,)
        try:
            self.load(candidate)
        except PluginError:
            with self._lock:
                self._in_process = tuple(c for c in self._in_process if c is not candidate)
                self._outcomes.pop(candidate.distribution, None)
            raise
        return self._record(candidate)

    def configure(self, **changes: Any) -> None:
        """Replace fields of the settings; names are looked up anew."""
        with self._lock:
            self.settings = replace(self.settings, **changes)
            self._primitives = {}

    def refresh(self) -> tuple[PluginRecord, ...]:
        """Read the metadata again and give plugins that did not load another chance."""
        importlib.invalidate_caches()
        with self._lock:
            loaded = PluginState.LOADED
            self._outcomes = {k: o for k, o in self._outcomes.items() if o.state is loaded}
            self._values = {}
            self._scanned = None
        return self.records()

    def trace(self, text: str) -> None:
        """Report a step on standard error, when the settings ask for it."""
        if self.settings.trace:
            print(f"braintrace.plugins: {text}", file=sys.stderr)


def _hide_frames(package: str) -> None:
    """Diagnostics name the line that uses an installed plugin, not a line of the plugin."""
    from ..base import versions

    module = sys.modules.get(package)
    if getattr(module, "__file__", None):
        versions.hide_frames(module)


def _why_incompatible(candidate: Candidate) -> str | None:
    upgrade = f"Run: pip install --upgrade braintrace-core {candidate.distribution}"
    if not candidate.core_admitted:
        return (
            f"needs braintrace-core{candidate.needs_core}, but braintrace-core {__version__} is "
            f"installed. {upgrade}"
        )
    groups = {entry.group for entry in candidate.plugins}
    if groups and _API_GROUP not in groups:
        theirs = ", ".join(sorted(g.removeprefix(PLUGIN_GROUP) for g in groups))
        return _api_mismatch(theirs, upgrade)
    return None


def _api_mismatch(theirs: str, upgrade: str) -> str:
    return (
        f"is written for plugin API {theirs}, but braintrace-core {__version__} offers 1.0. "
        f"{upgrade}"
    )


def _family_conflict(candidate: Candidate, rivals: list[Candidate]) -> str:
    titles = " and ".join(c.title for c in rivals)
    return (
        f"is not used: {titles} provides the family {candidate.family!r} too. Uninstall one of "
        "them, or disable one with BRAINTRACE_DISABLE_PLUGINS"
    )


def _failure(candidate: Candidate, exception: BaseException) -> Outcome:
    from . import hooks

    if isinstance(exception, hooks.IncompatibleError):
        upgrade = f"Run: pip install --upgrade braintrace-core {candidate.distribution}"
        return Outcome(PluginState.INCOMPATIBLE, _api_mismatch(str(exception), upgrade), exception)
    return Outcome(PluginState.FAILED, f"failed to load ({brief(exception)})", exception)


def _problems(candidate: Candidate, offer: Offer) -> tuple[str, ...]:
    """Where a plugin's own account of itself differs from its metadata."""
    info = offer.info
    declared = {(kind, name) for kind, names in info.exports.items() for name in names}
    pairs = (
        ("distribution", info.distribution, candidate.distribution),
        ("version", info.version, candidate.version),
        ("exports", sorted(declared), sorted(candidate.exports)),
    )
    return tuple(
        f"gives {said!r} as its {what} in braintrace_plugin_info and {known!r} in its metadata; "
        "make them the same and install it again"
        for what, said, known in pairs
        if said and said != known
    )


def _in_process_candidate(plugin: object, info: Any) -> Candidate:
    module = type(plugin).__module__
    return Candidate(
        distribution=info.distribution or info.family,
        version=info.version,
        origin=module,
        plugins=(_InProcess(info.family, f"{module}:{type(plugin).__name__}", plugin),),
        exports={},
    )


def brief(exception: BaseException) -> str:
    """The kind of an exception and the first line of its text."""
    text = str(exception).strip().splitlines()
    name = type(exception).__name__
    return f"{name}: {text[0]}" if text else name
