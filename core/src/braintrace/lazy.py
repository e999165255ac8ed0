# SPDX-License-Identifier: Apache-2.0
"""The resolution of public names on first use.

Nothing but the interpreter's own modules is imported here: ``import braintrace`` stays free of
jax, of pluggy and of package metadata.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

from .names import CORE, DISTRIBUTED, INSTEAD, OFFICIAL, SUBMODULES

TYPE_CHECKING = False  # as type checkers read it; importing typing takes longer than all else
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
_MODULE_OF = {"ops": _PACKAGE, "nn": f"{_PACKAGE}.nn"}


def resolve_in_core(name: str) -> object:
    """``braintrace.<name>``: a core name, a submodule, or an operation of a plugin."""
    if name in SUBMODULES and name not in DISTRIBUTED:
        return import_module(f"{_PACKAGE}.{name}")
    if name in CORE:
        value = getattr(import_module(f"{_PACKAGE}.{CORE[name]}"), name)
        setattr(sys.modules[_PACKAGE], name, value)
        return value
    if name == "__all__":
        return _listed("ops", {*CORE, "nn"})
    return provided("ops", name)


def resolve_in_nn(name: str) -> object:
    """``braintrace.nn.<name>``: a layer of a plugin, or the name of ``brainstate.nn``."""
    if name.startswith("_") or _has_provider("nn", name):
        return provided("nn", name)
    known = name not in INSTEAD["nn"]
    found = getattr(import_module("brainstate.nn"), name, None) if known else None
    if found is None:
        raise _unknown("nn", name)
    return found


def provided(kind: str, name: str) -> object:
    """What another distribution provides as ``name`` among the ``ops`` or in ``nn``."""
    if not _has_provider(kind, name):
        raise _unknown(kind, name)
    from .plugins.errors import PluginAttributeError, PluginError

    try:
        return _loaded(kind, name)
    except PluginError as error:
        module = sys.modules[_MODULE_OF[kind]]
        raise PluginAttributeError.of(error, name, module) from error.__cause__


def names_of_core() -> list[str]:
    """What ``dir(braintrace)`` lists: everything that resolves."""
    absent = {name for name, (_, package) in DISTRIBUTED.items() if _spec_of(package) is None}
    return sorted({*vars(sys.modules[_PACKAGE]), *_listed("ops", {*CORE, *SUBMODULES} - absent)})


def names_of_nn() -> list[str]:
    """What ``dir(braintrace.nn)`` lists: everything that resolves."""
    forwarded = {n for n in dir(import_module("brainstate.nn")) if not n.startswith("_")}
    public = _listed("nn", forwarded - OFFICIAL["nn"].keys() - INSTEAD["nn"].keys())
    return sorted({*vars(sys.modules[_MODULE_OF["nn"]]), *public})


def _listed(kind: str, names: set[str]) -> list[str]:
    """These names and those of plugins that resolve."""
    from .plugins import process, resolution

    return sorted(names | resolution.available(process.host(), kind))


def _has_provider(kind: str, name: str) -> bool:
    """Whether a name is known to be another distribution's, installed or not."""
    if name.startswith("_"):
        return False
    if name in OFFICIAL[kind] or (kind == "ops" and name in DISTRIBUTED):
        return True
    from .plugins import process, resolution

    return name in resolution.exported(process.host(), kind)


def _loaded(kind: str, name: str) -> object:
    """The object of a name that has a provider; a ``PluginError`` says why it cannot be had."""
    from .plugins import process, resolution

    if kind != "ops" or name not in DISTRIBUTED:
        return resolution.resolve(process.host(), kind, name)
    distribution, package = DISTRIBUTED[name]
    if _spec_of(package) is None:
        raise resolution.not_installed(f"{_PACKAGE}.{name}", distribution)
    return import_module(f"{_PACKAGE}.{name}")


def _unknown(kind: str, name: str) -> AttributeError:
    module = sys.modules[_MODULE_OF[kind]]
    text = f"module {module.__name__!r} has no attribute {name!r}{_instead(kind, name)}"
    return AttributeError(text, name=name, obj=module)


def _instead(kind: str, name: str) -> str:
    """What to use in place of a name of the distribution ``braintrace`` 0.2."""
    if name not in INSTEAD[kind]:
        return ""
    return f"; in the place of this name of braintrace 0.2, use {INSTEAD[kind][name]}"


def _spec_of(module: str) -> ModuleSpec | None:
    from importlib.util import find_spec  # slow to import

    return find_spec(module)


class _ProviderFinder:
    """Last on ``sys.meta_path``: ``import braintrace.conv`` says why it cannot be had.

    ``from braintrace import conv`` ends here too. The error names the provider as the missing
    module: an error that named the requested one would be swallowed by the import statement. A name
    of ``braintrace`` 0.2 says what to use instead.
    """

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        parent, _, name = fullname.rpartition(".")
        kind = next((kind for kind, module in _MODULE_OF.items() if module == parent), "")
        if kind and name not in {*CORE, *SUBMODULES} - {*DISTRIBUTED} and _has_provider(kind, name):
            from .plugins.errors import PluginError, PluginImportError

            try:
                _loaded(kind, name)
            except PluginError as error:
                raise PluginImportError.of(error) from error.__cause__
        elif kind and name in INSTEAD[kind]:
            text = f"cannot import name {name!r} from {parent!r}{_instead(kind, name)}"
            raise ImportError(text, name=parent)


class _DistributedFinder:
    """First on ``sys.meta_path``: ``braintrace.testing`` is the package ``braintrace_testing``.

    It is also the loader. The modules are the same objects under both names, so that every class
    has one identity.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        parent, _, rest = fullname.partition(".")
        name, _, below = rest.partition(".")
        if parent != _PACKAGE or name not in DISTRIBUTED:
            return None
        package = DISTRIBUTED[name][1]
        if _spec_of(package) is None:
            return None  # the other finder says so
        real = _spec_of(f"{package}.{below}" if below else package)
        return None if real is None else ModuleSpec(fullname, self, loader_state=real)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(spec.loader_state.name)

    def exec_module(self, module: Any) -> None:
        module.__spec__ = module.__spec__.loader_state  # the import system has put the other there


def install_finders() -> None:
    """Install the finders once, however often the package is reloaded."""
    known = {type(finder).__qualname__ for finder in sys.meta_path}
    if "_ProviderFinder" not in known:
        sys.meta_path.append(_ProviderFinder())
        sys.meta_path.insert(0, _DistributedFinder())
