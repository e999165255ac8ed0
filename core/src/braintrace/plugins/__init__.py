# SPDX-License-Identifier: Apache-2.0
"""The installed plugins: what they are, which may be used, and loading them.

A plugin is loaded on first use of one of its names; nothing here needs to be called for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from . import process as _process
from .errors import PluginError as PluginError
from .host import Host as _Host
from .process import host as _host
from .records import PluginRecord as PluginRecord
from .records import PluginState as PluginState
from .records import Settings as _Settings

_UNCHANGED: Any = object()


def records() -> tuple[PluginRecord, ...]:
    """What is known about every installed plugin; imports none of them.

    Examples
    --------
    >>> import braintrace
    >>> for record in braintrace.plugins.records():
    ...     print(record.family, record.version, record.state)  # doctest: +SKIP
    dense 0.1.0 discovered
    """
    return _host().records()


def load_all(*, strict: bool | None = None) -> tuple[PluginRecord, ...]:
    """Load every plugin that is not disabled, and return the records.

    Parameters
    ----------
    strict
        Raise when a plugin does not load; by default what :func:`configure` or
        ``BRAINTRACE_STRICT_PLUGINS`` says (else ``False``).

    Returns
    -------
    tuple of PluginRecord

    Raises
    ------
    PluginError
        When ``strict`` and a plugin failed, is incompatible or in conflict; it lists them all.

    Examples
    --------
    >>> import braintrace
    >>> with braintrace.plugins.isolated():  # no plugin, as in a test
    ...     braintrace.plugins.load_all(strict=True)
    ()
    """
    return _host().load_all(strict)


def refresh() -> tuple[PluginRecord, ...]:
    """Read the installed metadata again; plugins that did not load get another chance.

    Returns
    -------
    tuple of PluginRecord

    Examples
    --------
    >>> import braintrace
    >>> braintrace.plugins.refresh() == braintrace.plugins.records()
    True
    """
    return _host().refresh()


def configure(
    *,
    allow: Iterable[str] | None = _UNCHANGED,
    disable: Iterable[str] = _UNCHANGED,
    strict: bool = _UNCHANGED,
) -> None:
    """Choose which plugins may be used, by family or distribution name.

    Call it before the plugins concerned are used: a model already compiled is not changed.

    Parameters
    ----------
    allow
        The only plugins that may be used; ``None`` for all, an empty list for none.
    disable
        Plugins that may not be used; ``["*"]`` for all.
    strict
        Whether :func:`load_all` raises when a plugin does not load.

    Raises
    ------
    TypeError
        When ``allow`` or ``disable`` is one string instead of several names.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.plugins.configure(strict=True)  # load_all() raises from now on
    >>> braintrace.plugins.configure(strict=False)
    """
    given = {"allow": allow, "disable": disable, "strict": strict}
    _host().configure(**{k: value for k, value in given.items() if value is not _UNCHANGED})


def register(plugin: object) -> PluginRecord:
    """Use a plugin object of this process, as if it were installed (it exports no names).

    Parameters
    ----------
    plugin
        An object with the hooks ``braintrace_plugin_info`` and ``braintrace_primitives``.

    Returns
    -------
    PluginRecord
        Its record, with state ``loaded``.

    Raises
    ------
    PluginError
        When it is not a valid plugin, or may not be used; nothing of it is registered then.

    Examples
    --------
    >>> import braintrace
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl
    >>> class Scale:
    ...     @hookimpl
    ...     def braintrace_plugin_info(self):
    ...         return PluginInfo("scale", distribution="example-scale", version="1.0")
    ...
    ...     @hookimpl
    ...     def braintrace_primitives(self, api):
    ...         return [ETPPrimitiveSpec("doc_plugin_scale", lambda x, w: x * w)]
    >>> with braintrace.plugins.isolated():
    ...     str(braintrace.plugins.register(Scale()).state)
    'loaded'
    """
    return _host().register(plugin)


@contextmanager
def isolated(plugins: Iterable[object] = ()) -> Iterator[tuple[PluginRecord, ...]]:
    """Only these plugin objects for the length of a ``with`` block, none of those installed.

    For tests. The whole process sees them. Primitives that the block registers are forgotten
    after it, and rules that it replaces are put back.

    Parameters
    ----------
    plugins
        Plugin objects, as :func:`register` takes them.

    Returns
    -------
    context manager
        Entering it gives their records.

    Raises
    ------
    PluginError
        On entering, when one of them is not a valid plugin.

    Examples
    --------
    >>> import braintrace
    >>> with braintrace.plugins.isolated([]) as records:
    ...     print(records, hasattr(braintrace, "matmul"))
    () False
    """
    from ..ops.primitive import kept_registry

    here = _Host(_Settings(), scanned=())
    before, _process._HOST = _process._HOST, here
    try:
        with kept_registry():
            for plugin in plugins:
                here.register(plugin)
            yield here.records()
    finally:
        _process._HOST = before


def conformance_cases(family: str) -> tuple[Any, ...]:
    """What a family's ``braintrace_conformance_cases`` returns; the plugin is loaded first.

    Parameters
    ----------
    family
        Name of an installed or registered family.

    Returns
    -------
    tuple
        Its cases for the conformance kit; empty when the plugin does not have the hook.

    Raises
    ------
    PluginError
        When no such plugin can be used, or its hook raises or does not return cases.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.plugins.conformance_cases("elemwise")  # has its cases beside its tests
    ()
    """
    from . import services

    return services.conformance_cases(_host(), family)
