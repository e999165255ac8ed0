# SPDX-License-Identifier: Apache-2.0
"""How a file and a learner differ, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import storage
from .description import version_of
from .held import Held, type_of

# --- what differs --------------------------------------------------------------------------------


def changed_version(content: storage.Content) -> list[str]:
    """Versions of one series agree about what their arrays mean."""
    theirs, ours = str(content.manifest.get("braintrace")), version_of()
    same = theirs.split(".")[:2] == ours.split(".")[:2]
    return [] if same else [f"version of braintrace: {theirs} in the file, {ours} here"]


def changed_description(content: storage.Content, ours: Mapping[str, str]) -> list[str]:
    theirs = _mapping(content, "description")
    return [
        f"{name}: {theirs.get(name, 'nothing')} in the file, {ours.get(name, 'nothing')} here"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]


def changed_leaves(content: storage.Content, held: list[Held]) -> list[str]:
    """Arrays that only one side has, and those of another kind, shape, dtype or unit."""
    kinds, units = _mapping(content, "kinds"), _mapping(content, "units")
    names = {leaf.name for leaf in held}
    found = []
    for leaf in held:
        stored = content.types.get(leaf.name)
        if stored is None:
            found.append(f"{leaf.name}: not in the file")
            continue
        ours = type_of(leaf)
        pairs = {
            "kind": (kinds.get(leaf.name), leaf.kind),
            "shape": (stored.shape, ours.shape),
            "dtype": (stored.dtype, ours.dtype),
            "unit": (units.get(leaf.name, "none"), leaf.unit or "none"),
        }
        found += [
            f"{leaf.name}: {what} {_shown(a, what)} in the file, {_shown(b, what)} here"
            for what, (a, b) in pairs.items()
            if _compared(a, what) != _compared(b, what)
        ]
    return [*found, *(f"{name}: only in the file" for name in content.types if name not in names)]


def _shown(value: Any, what: str) -> str:
    return str(value).split(" = ")[0] if what == "unit" else str(value)


def _compared(value: Any, what: str) -> Any:
    return str(value).split(" = ")[-1] if what == "unit" else value


def _mapping(content: storage.Content, name: str) -> Mapping[str, Any]:
    found = content.manifest.get(name)
    return found if isinstance(found, dict) else {}
