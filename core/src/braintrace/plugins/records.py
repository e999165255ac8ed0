# SPDX-License-Identifier: Apache-2.0
"""What is known about each plugin."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class PluginState(enum.StrEnum):
    """How far a plugin has come.

    Examples
    --------
    >>> from braintrace.plugins import PluginState
    >>> [str(state) for state in PluginState]
    ['discovered', 'loaded', 'failed', 'incompatible', 'conflict', 'disabled']
    """

    DISCOVERED = "discovered"
    LOADED = "loaded"
    FAILED = "failed"
    INCOMPATIBLE = "incompatible"
    CONFLICT = "conflict"
    DISABLED = "disabled"


@dataclass(frozen=True)
class PluginRecord:
    """One plugin: who it is, its state, and why it is not used when it is not.

    Attributes
    ----------
    family, distribution, version, origin
        Its names, version, and where it lies.
    state
        A :class:`PluginState`.
    exports
        Public names that it provides, such as ``"braintrace.matmul"``.
    primitives
        Names of the primitives it registered (once loaded).
    reason
        Why it is not used: the end of "``<distribution>``, which ..."; empty when it can be.
    exception
        What it raised, when it failed.
    load_time
        Seconds that loading took, ``None`` before.
    problems
        Findings that do not prevent its use, such as exports that differ from the metadata.

    Examples
    --------
    >>> import braintrace
    >>> record = next(r for r in braintrace.plugins.records() if r.family == "dense")
    >>> record.distribution, "braintrace.matmul" in record.exports
    ('braintrace-dense', True)
    """

    family: str
    distribution: str
    version: str
    origin: str
    state: PluginState
    exports: tuple[str, ...] = ()
    primitives: tuple[str, ...] = ()
    reason: str = ""
    exception: BaseException | None = None
    load_time: float | None = None
    problems: tuple[str, ...] = ()
