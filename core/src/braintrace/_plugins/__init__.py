# SPDX-License-Identifier: Apache-2.0
"""The plugin host: discovery, loading, isolation and the resolution of exported names."""

from __future__ import annotations

import threading

from ._host import Host
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
