# SPDX-License-Identifier: Apache-2.0
"""The plugin host: discovery, loading, isolation and the resolution of exported names."""

from __future__ import annotations

import threading
from typing import Any

from .host import Host
from .records import Settings

_LOCK = threading.Lock()
_HOST: Host | None = None


def host() -> Host:
    """The host of this process, made on first need with the settings of the environment."""
    global _HOST
    if _HOST is None:  # once it is made, nobody waits: a thread or a fork may hold the lock
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
