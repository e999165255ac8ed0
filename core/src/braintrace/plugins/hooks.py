# SPDX-License-Identifier: Apache-2.0
"""The hooks of a plugin, and one plugin's answers to them, validated.

Hooks return declarative values. Every plugin has its own pluggy manager and is asked alone, so
what one of them raises cannot lose the answers of another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pluggy

from ..ops.spec import ETPPrimitiveSpec

PROJECT = "braintrace"
API = (1, 0)

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class IncompatibleError(Exception):
    """The plugin speaks another version of the plugin API."""


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
        for name in ("family", "distribution", "version"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, got {getattr(self, name)!r}")
        if not self.family:
            raise ValueError("family must not be empty")
        if not _is_api(self.api):
            raise TypeError(f"api must be (major, minor), two integers, got {self.api!r}")
        object.__setattr__(self, "exports", _frozen_exports(self.exports))


def _is_api(api: object) -> bool:
    return isinstance(api, tuple) and len(api) == 2 and all(type(n) is int for n in api)


def _frozen_exports(exports: object) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(exports, Mapping):
        raise TypeError(f"exports must map 'ops' and 'nn' to names, got {exports!r}")
    if unknown := sorted(set(exports) - {"ops", "nn"}):
        raise ValueError(f"exports has unknown kinds {unknown}; kinds are 'ops' and 'nn'")
    for kind, given in exports.items():
        if isinstance(given, str) or not all(isinstance(name, str) for name in given):
            raise TypeError(f"exports[{kind!r}] must be a tuple of names, got {given!r}")
    return MappingProxyType({kind: tuple(given) for kind, given in exports.items()})


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


class HookSpecs:
    """The hooks that a plugin object may implement."""

    @hookspec
    def braintrace_plugin_info(self) -> PluginInfo:  # type: ignore[empty-body]
        """Who the plugin is (required)."""

    @hookspec
    def braintrace_primitives(self, api: HostInfo) -> Iterable[ETPPrimitiveSpec]:  # type: ignore[empty-body]
        """The specifications of its primitives (required)."""

    @hookspec
    def braintrace_algorithms(self, api: HostInfo) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Learner classes, subclasses of ``braintrace.ETraceAlgorithm``, by name."""

    @hookspec
    def braintrace_conformance_cases(self, api: HostInfo) -> Iterable[Any]:  # type: ignore[empty-body]
        """Small builders used only by the test kit."""

    @hookspec
    def braintrace_doctor(self, context: Any) -> Iterable[Any]:  # type: ignore[empty-body]
        """Findings about the installation: id, level, text, fix."""

    @hookspec(firstresult=True)
    def braintrace_explain(self, record: Any) -> str | None:  # type: ignore[empty-body]
        """One sentence of advice for a diagnostic of the compiler."""


REQUIRED = ("braintrace_plugin_info", "braintrace_primitives")


@dataclass(frozen=True)
class Offer:
    """What a plugin declares, validated and not yet committed."""

    info: PluginInfo
    specs: tuple[ETPPrimitiveSpec, ...]
    manager: pluggy.PluginManager


def collect(plugin: object, core_version: str) -> Offer:
    """Ask one plugin object for its declarations and check them.

    Raises
    ------
    TypeError, ValueError, pluggy.PluginValidationError
        When the object or one of its answers is not what the hooks promise.
    IncompatibleError
        When it was written for another plugin API.
    """
    manager = _manager_of(plugin)
    info = _ask(manager, "braintrace_plugin_info")
    if not isinstance(info, PluginInfo):
        raise TypeError(f"braintrace_plugin_info must return a PluginInfo, got {kind_of(info)}")
    if info.api[0] != API[0] or info.api[1] > API[1]:
        raise IncompatibleError(".".join(map(str, info.api)))
    specs = _ask(manager, "braintrace_primitives", api=HostInfo(API, core_version))
    return Offer(info, _checked_specs(specs), manager)


def _manager_of(plugin: object) -> pluggy.PluginManager:
    if inspect.isclass(plugin) or inspect.ismodule(plugin):
        raise TypeError(f"a plugin is an instance of a small class, got the {kind_of(plugin)}")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    manager.register(plugin)
    manager.check_pending()
    implemented = {caller.name: caller for caller in manager.get_hookcallers(plugin) or ()}
    if missing := [name for name in REQUIRED if name not in implemented]:
        raise TypeError(f"the plugin does not implement {', '.join(missing)}")
    for name, caller in implemented.items():
        if any(impl.hookwrapper or impl.wrapper for impl in caller.get_hookimpls()):
            raise TypeError(f"{name} is a wrapper; plugins may not wrap hooks")
    return manager


def _ask(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> Any:
    answers = getattr(manager.hook, hook)(**arguments)
    if len(answers) != 1:  # pluggy leaves None out
        raise TypeError(f"{hook} returned None")
    return answers[0]


def _checked_specs(given: object) -> tuple[ETPPrimitiveSpec, ...]:
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise TypeError(f"braintrace_primitives must return specifications, got {kind_of(given)}")
    specs = tuple(given)
    for spec in specs:
        if not isinstance(spec, ETPPrimitiveSpec):
            raise TypeError(
                f"braintrace_primitives must return ETPPrimitiveSpec records, got {kind_of(spec)}"
            )
    listed = [spec.name for spec in specs]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise ValueError(f"braintrace_primitives returns {', '.join(twice)} more than once")
    by_name = {spec.name: spec for spec in specs}
    for spec in specs:
        _check_counterpart(spec, by_name)
        _check_signatures(spec)
    return specs


def _check_counterpart(spec: ETPPrimitiveSpec, by_name: dict[str, ETPPrimitiveSpec]) -> None:
    name = spec.batched_counterpart
    if name is None:
        return
    if name not in by_name or not by_name[name].batched:
        raise ValueError(
            f"{spec.name!r} names {name!r} as its batched counterpart, which is not a batched "
            "primitive of this plugin"
        )


#: How many positional arguments core passes to each function of a specification.
_ARGUMENTS = {
    "yw_to_w": 2,
    "xy_to_dw": 3,
    "init_drtrl": 4,
    "init_pp": 4,
    "instant_drtrl": 3,
    "increments_drtrl": 3,
    "solve_drtrl": 3,
    "trainable_invars_fn": 1,
}


def _check_signatures(spec: ETPPrimitiveSpec) -> None:
    """Refuse rules that cannot be called the way core calls them."""
    for rule, count in _ARGUMENTS.items():
        _check_takes(spec, rule, count)
    x = -1 if spec.x_invar_index is None else spec.x_invar_index
    _check_takes(spec, "impl", x + (2 if spec.trainable_invars_fn is None else 1))


def _check_takes(spec: ETPPrimitiveSpec, rule: str, count: int) -> None:
    function = getattr(spec, rule)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # none, or built in: it does not say
        return
    try:
        signature.bind_partial(*range(count))
    except TypeError:
        raise TypeError(
            f"{rule} of {spec.name!r} must take {count} positional arguments, its signature is "
            f"{signature}"
        ) from None


def kind_of(value: object) -> str:
    """A value as messages describe it."""
    if inspect.isclass(value) or inspect.ismodule(value):
        return f"{type(value).__name__} {value.__name__}"
    return f"{type(value).__name__} {value!r:.80}"
