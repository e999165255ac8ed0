# SPDX-License-Identifier: Apache-2.0
"""The plugin host: discovery, loading, isolation and the resolution of exported names."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ._host import Host
from ._records import PluginRecord
from ._settings import Settings

_LOCK = threading.Lock()
_HOST: Host | None = None


def host() -> Host:
    """The host of this process, made on first need with the settings of the environment."""
    global _HOST
    if _HOST is None:
        with _LOCK:
            if _HOST is None:
                _HOST = Host(Settings.from_environment())
    return _HOST


@contextmanager
def isolated(plugins: Iterable[object]) -> Iterator[tuple[PluginRecord, ...]]:
    """A host of its own with these plugin objects alone; see :mod:`braintrace.plugins`."""
    global _HOST
    from .. import _primitive

    before, known = _HOST, _primitive.snapshot()
    _HOST = Host(Settings(), scanned=())
    try:
        for plugin in plugins:
            _HOST.register(plugin)
        yield _HOST.records()
    finally:
        _HOST = before
        _primitive.restore(known)
