# SPDX-License-Identifier: Apache-2.0
"""The plugin host: discovery, loading, isolation and the resolution of exported names."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .host import Host
from .records import PluginRecord
from .settings import Settings

_LOCK = threading.Lock()
_HOST: Host | None = None


def host() -> Host:
    """The host of this process, made on first need with the settings of the environment."""
    global _HOST
    if _HOST is None:
        with _LOCK:
            if _HOST is None:
                _HOST = Host(Settings.from_environment(), restorer=restored)
    return _HOST


def restored(name: str, owner: str) -> Any:
    """The primitive of a pickle; in a fresh process the plugin that owns it is loaded first."""
    from ..ops.primitive import BATCHED, find_primitive, restored

    package, _, derived = owner.partition(":")
    if find_primitive(name) is None:
        host().find_primitive(name.removesuffix(BATCHED) if derived else name, package)
    return restored(name, owner)


@contextmanager
def isolated(plugins: Iterable[object]) -> Iterator[tuple[PluginRecord, ...]]:
    """A host of its own with these plugin objects alone; see :mod:`braintrace.plugins`."""
    global _HOST
    from ..ops import primitive

    before, known = _HOST, primitive.snapshot()
    _HOST = Host(Settings(), scanned=())
    try:
        for plugin in plugins:
            _HOST.register(plugin)
        yield _HOST.records()
    finally:
        _HOST = before
        primitive.restore(known)
