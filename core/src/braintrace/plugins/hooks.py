# SPDX-License-Identifier: Apache-2.0
"""The hooks of a plugin, and one plugin's declarations, validated.

Hooks return declarative values. Every plugin has its own pluggy manager and is asked alone, so
what one of them raises cannot lose the answers of another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pluggy

from ..ops.spec import ETPPrimitiveSpec
from .errors import IncompatibleError
from .records import API, HostInfo, PluginInfo

PROJECT = "braintrace"

hookspec = pluggy.HookspecMarker(PROJECT)(firstresult=True)  # a manager knows one plugin
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks that a plugin object may implement."""

    @hookspec
    def braintrace_plugin_info(self) -> PluginInfo:  # type: ignore[empty-body]
        """Who the plugin is (required)."""

    @hookspec
    def braintrace_primitives(self, api: HostInfo) -> Iterable[ETPPrimitiveSpec]:  # type: ignore[empty-body]
        """The specifications of its primitives."""

    @hookspec
    def braintrace_algorithms(self, api: HostInfo) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Learner classes, subclasses of ``braintrace.ETraceAlgorithm``, by name."""

    @hookspec
    def braintrace_conformance_cases(self, api: HostInfo) -> Iterable[Any]:  # type: ignore[empty-body]
        """Small builders used only by the test kit."""

    @hookspec
    def braintrace_doctor(self, context: Any) -> Iterable[Any]:  # type: ignore[empty-body]
        """Findings about the installation: id, level, text, fix."""

    @hookspec
    def braintrace_explain(self, record: Any) -> str | None:  # type: ignore[empty-body]
        """One sentence of advice for a diagnostic of the compiler."""


@dataclass(frozen=True)
class Offer:
    """What a plugin declares, validated and not yet committed."""

    info: PluginInfo
    specs: tuple[ETPPrimitiveSpec, ...]
    manager: pluggy.PluginManager


def collect(plugin: object, core_version: str) -> Offer:
    """Ask one plugin object for its declarations.

    ``TypeError``, ``ValueError`` and ``pluggy.PluginValidationError`` say that the object or one of
    its answers is not what the hooks promise, ``IncompatibleError`` that it was written for another
    plugin API.
    """
    manager = _manager_of(plugin)
    info = manager.hook.braintrace_plugin_info()
    if not isinstance(info, PluginInfo):
        raise TypeError(f"braintrace_plugin_info must return a PluginInfo, got {kind_of(info)}")
    if info.api[0] != API[0] or info.api[1] > API[1]:
        raise IncompatibleError(".".join(map(str, info.api)))
    specs: object = ()
    if manager.hook.braintrace_primitives.get_hookimpls():
        specs = manager.hook.braintrace_primitives(api=HostInfo(API, core_version))
    return Offer(info, _checked_specs(specs), manager)


def listed(hook: str, what: str, given: object) -> tuple[Any, ...]:
    """What a hook returned, which must be an iterable of ``what``."""
    if given is None:
        raise TypeError(f"{hook} returned None")
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise TypeError(f"{hook} must return {what}, got {kind_of(given)}")
    return tuple(given)


def _manager_of(plugin: object) -> pluggy.PluginManager:
    if inspect.isclass(plugin) or inspect.ismodule(plugin):
        raise TypeError(f"a plugin is an instance of a small class, got the {kind_of(plugin)}")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    manager.register(plugin)
    manager.check_pending()
    if not manager.hook.braintrace_plugin_info.get_hookimpls():
        raise TypeError("the plugin does not implement braintrace_plugin_info")
    for caller in manager.get_hookcallers(plugin) or ():
        if any(impl.hookwrapper or impl.wrapper for impl in caller.get_hookimpls()):
            raise TypeError(f"{caller.name} is a wrapper; plugins may not wrap hooks")
    return manager


def _checked_specs(given: object) -> tuple[ETPPrimitiveSpec, ...]:
    specs = listed("braintrace_primitives", "specifications", given)
    for spec in specs:
        if not isinstance(spec, ETPPrimitiveSpec):
            raise TypeError(
                f"braintrace_primitives must return ETPPrimitiveSpec records, got {kind_of(spec)}"
            )
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"braintrace_primitives returns {', '.join(twice)} more than once")
    batched = {spec.name for spec in specs if spec.batched}
    for spec in specs:
        if spec.batched_counterpart not in {None, *batched}:
            raise ValueError(
                f"{spec.name!r} names {spec.batched_counterpart!r} as its batched counterpart, "
                "which is not a batched primitive of this plugin"
            )
        _check_signatures(spec)
    return specs


#: How many positional arguments core passes to each function of a specification.
_ARGUMENTS = {
    "yw_to_w": 2, "xy_to_dw": 3, "init_drtrl": 4, "init_pp": 4, "trainable_invars_fn": 1,
    "instant_drtrl": 3, "increments_drtrl": 3, "solve_drtrl": 3, "rows_drtrl": 1,
}  # fmt: skip


def _check_signatures(spec: ETPPrimitiveSpec) -> None:
    """Refuse rules that cannot be called the way core calls them."""
    x = -1 if spec.x_invar_index is None else spec.x_invar_index
    operands = x + (2 if spec.trainable_invars_fn is None else 1)
    for rule, count in {**_ARGUMENTS, "impl": operands}.items():
        try:
            signature = inspect.signature(getattr(spec, rule))
        except (TypeError, ValueError):  # none, or built in: it does not say
            continue
        try:
            signature.bind_partial(*range(count))
        except TypeError:
            raise TypeError(
                f"{rule} of {spec.name!r} must take {count} positional arguments, its signature "
                f"is {signature}"
            ) from None


def kind_of(value: object) -> str:
    """A value as messages describe it."""
    if inspect.isclass(value) or inspect.ismodule(value):
        return f"{type(value).__name__} {value.__name__}"
    return f"{type(value).__name__} {value!r:.80}"
