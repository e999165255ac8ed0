# SPDX-License-Identifier: Apache-2.0
"""The resolution of public names on first use.

Nothing but the interpreter's own modules is imported here: ``import braintrace`` stays free of
jax, of pluggy and of package metadata.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

from .names import CORE, DISTRIBUTED, OFFICIAL, SUBMODULES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
_MODULE_OF = {"ops": _PACKAGE, "nn": f"{_PACKAGE}.nn"}


def resolve_in_core(name: str) -> object:
    """``braintrace.<name>``: a core name, a submodule, or an operation of a plugin."""
    if name in DISTRIBUTED and _spec_of(DISTRIBUTED[name][1]) is None:
        error = _not_installed(name)
        raise _host().errors.as_attribute_error(error, name, sys.modules[_PACKAGE])
    if name in SUBMODULES:
        return import_module(f"{_PACKAGE}.{name}")
    if name in CORE:
        value = getattr(import_module(f"{_PACKAGE}.{CORE[name]}"), name)
        setattr(sys.modules[_PACKAGE], name, value)
        return value
    return provided("ops", name)


def resolve_in_nn(name: str) -> object:
    """``braintrace.nn.<name>``: a layer of a plugin, or the name of ``brainstate.nn``."""
    if name.startswith("_"):
        raise _unknown("nn", name)
    if name in OFFICIAL["nn"] or name in _host().exported("nn"):
        return provided("nn", name)
    try:
        return getattr(import_module("brainstate.nn"), name)
    except AttributeError:
        raise _unknown("nn", name) from None


def provided(kind: str, name: str) -> object:
    """The object that a plugin exports as ``name`` among the ``ops`` or in ``nn``."""
    if name.startswith("_"):
        raise _unknown(kind, name)
    host = _host()
    if name not in OFFICIAL[kind] and name not in host.exported(kind):
        raise _unknown(kind, name)
    try:
        return host.resolve(kind, name)
    except host.errors.PluginError as error:
        raise host.errors.as_attribute_error(error, name, sys.modules[_MODULE_OF[kind]]) from (
            error.__cause__
        )


def names_of_core() -> list[str]:
    """What ``dir(braintrace)`` lists: everything that resolves."""
    return sorted({*vars(sys.modules[_PACKAGE]), *CORE, *SUBMODULES, *_host().available("ops")})


def names_of_nn() -> list[str]:
    """What ``dir(braintrace.nn)`` lists: everything that resolves."""
    forwarded = (n for n in dir(import_module("brainstate.nn")) if not n.startswith("_"))
    mine = {*forwarded} - OFFICIAL["nn"].keys()
    return sorted({*vars(sys.modules[_MODULE_OF["nn"]]), *mine, *_host().available("nn")})


def _host() -> Any:
    return import_module(f"{_PACKAGE}.plugins.process").host()


def _spec_of(module: str) -> Any:
    """Where a module is, or ``None``; ``importlib.util`` is slow to import."""
    return import_module("importlib.util").find_spec(module)


def _not_installed(name: str) -> Any:
    """The error about a submodule that is a distribution of its own."""
    distribution, _ = DISTRIBUTED[name]
    return _host().errors.PluginError(
        f"{_PACKAGE}.{name} is provided by {distribution!r}, which is not installed. "
        f"Run: pip install {distribution}",
        distribution,
    )


def _unknown(kind: str, name: str) -> AttributeError:
    module = sys.modules[_MODULE_OF[kind]]
    text = f"module {module.__name__!r} has no attribute {name!r}"
    return AttributeError(text, name=name, obj=module)


class _ProviderFinder:
    """Last on ``sys.meta_path``: ``import braintrace.conv`` says why it cannot be had.

    ``from braintrace import conv`` ends here too. The error names the provider as the missing
    module: an error that named the requested one would be swallowed by the import statement.
    """

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        parent, _, name = fullname.rpartition(".")
        kind = {module: kind for kind, module in _MODULE_OF.items()}.get(parent)
        if kind is None or name.startswith("_") or name in SUBMODULES or name in CORE:
            return None
        if name not in OFFICIAL[kind] and name not in _host().exported(kind):
            return None
        host = _host()
        try:
            host.resolve(kind, name)
        except host.errors.PluginError as error:
            raise host.errors.as_import_error(error) from error.__cause__
        return None


class _DistributedFinder:
    """First on ``sys.meta_path``: ``braintrace.testing`` is the package ``braintrace_testing``.

    The modules are the same objects under both names, so that every class has one identity.
    """

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        parent, _, rest = fullname.partition(".")
        name, _, below = rest.partition(".")
        if parent != _PACKAGE or name not in DISTRIBUTED:
            return None
        package = DISTRIBUTED[name][1]
        if _spec_of(package) is None:
            raise _host().errors.as_import_error(_not_installed(name))
        real = _spec_of(f"{package}.{below}" if below else package)
        loader: Any = _SameModule(real)
        return None if real is None else ModuleSpec(fullname, loader)


class _SameModule:
    """A loader whose module is one that has a name already."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(self.real.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.real  # the import system has just put the other one there


def install_finders() -> None:
    """Install the finders once, however often the package is reloaded."""
    known = {type(finder).__qualname__ for finder in sys.meta_path}
    if "_ProviderFinder" not in known:
        sys.meta_path.append(_ProviderFinder())
    if "_DistributedFinder" not in known:
        sys.meta_path.insert(0, _DistributedFinder())
