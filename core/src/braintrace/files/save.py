# SPDX-License-Identifier: Apache-2.0
"""What of a learner is saved, and when a saved one may take the place of another.

Every state that a learner goes on from is saved, by name: those of the model, the traces, the
learner's own, the optimizer's, and the random state from which ``brainstate.random`` draws, because
a training loop can draw from it wherever it likes. Beside them stands a description of the learner
in text. A file is restored only where names, types, units and description agree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace

from ..base import versions
from ..base.types import State, restore_values
from . import storage
from .arrays import Leaf, leaves_of
from .description import description_of


def save_learner(learner: Any, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """``learner.save(path, optimizer)``, for an optimizer that holds brainstate states."""
    _check_outside("saved")
    leaves = leaves_of(learner, optimizer)
    manifest = {
        "braintrace": str(braintrace.__version__),
        "made_with": {"brainstate": brainstate.__version__, "jax": jax.__version__},
        "description": description_of(learner, optimizer),
        "kinds": {leaf.name: leaf.kind for leaf in leaves},
        "units": {leaf.name: leaf.unit for leaf in leaves if leaf.unit},
    }
    types = [leaf.type for leaf in leaves]  # all of them before anything is written
    arrays = (
        (leaf.name, found, storage.encoded(leaf.value))
        for leaf, found in zip(leaves, types, strict=True)
    )
    storage.write(path, manifest, arrays)


def restore_learner(learner: Any, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """``learner.restore(path, optimizer)``: all states take the saved values, or none does."""
    _check_outside("restored")
    leaves = leaves_of(learner, optimizer)
    content = storage.read(path)
    found = [
        *_changed_version(content),
        *_changed_description(content, description_of(learner, optimizer)),
        *_changed_leaves(content, leaves),
    ]
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ValueError(
            f"{storage.file_name(path)} was saved from another learner than this one; nothing was "
            f"restored. What differs:{lines}"
        )
    values = _values(content, leaves, path)
    before = {state: state.value for state in values}
    try:
        for state, value in values.items():
            state.restore_value(value)
    except BaseException:
        restore_values(before)
        raise


def _check_outside(done: str) -> None:
    """A program that is being traced would hold the values of the moment it was traced."""
    if versions.is_traced(jnp.zeros(())):
        raise RuntimeError(
            f"a learner cannot be {done} inside jit, for_loop or another transformation; do it "
            "between the calls of what is compiled"
        )


def _values(
    content: storage.Content, leaves: list[Leaf], path: str | os.PathLike[str]
) -> dict[State, Any]:
    """The new value of every state."""
    found: dict[State, list[Any]] = {}
    for leaf in leaves:
        raw, stored = content.arrays[leaf.name], content.types[leaf.name]
        try:
            value = storage.decoded(raw, stored, leaf.value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{storage.file_name(path)} is damaged: {leaf.name} cannot be read: {error}"
            ) from error
        found.setdefault(leaf.state, []).append(value)
    return {
        state: jax.tree.unflatten(jax.tree.structure(state.value), new)
        for state, new in found.items()
    }


# --- what differs --------------------------------------------------------------------------------


def _changed_version(content: storage.Content) -> list[str]:
    """Versions of one series agree about what their arrays mean."""
    theirs, ours = str(content.manifest.get("braintrace")), str(braintrace.__version__)
    same = theirs.split(".")[:2] == ours.split(".")[:2]
    return [] if same else [f"version of braintrace: {theirs} in the file, {ours} here"]


def _changed_description(content: storage.Content, ours: Mapping[str, str]) -> list[str]:
    theirs = _mapping(content, "description")
    return [
        f"{name}: {theirs.get(name, 'nothing')} in the file, {ours.get(name, 'nothing')} here"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]


def _changed_leaves(content: storage.Content, leaves: list[Leaf]) -> list[str]:
    """Arrays that only one side has, and those of another kind, shape, dtype or unit."""
    kinds, units = _mapping(content, "kinds"), _mapping(content, "units")
    names = {leaf.name for leaf in leaves}
    found = []
    for leaf in leaves:
        stored = content.types.get(leaf.name)
        if stored is None:
            found.append(f"{leaf.name}: not in the file")
            continue
        pairs = {
            "kind": (kinds.get(leaf.name), leaf.kind),
            "shape": (stored.shape, leaf.type.shape),
            "dtype": (stored.dtype, leaf.type.dtype),
            "unit": (units.get(leaf.name, "none"), leaf.unit or "none"),
        }
        found += [
            f"{leaf.name}: {what} {_written(a)} in the file, {_written(b)} here"
            for what, (a, b) in pairs.items()
            if _meant(a) != _meant(b)
        ]
    return [*found, *(f"{name}: only in the file" for name in content.types if name not in names)]


def _written(value: Any) -> Any:
    """Of a unit how it is written, ..."""
    return value.partition(" = ")[0] if isinstance(value, str) else value


def _meant(value: Any) -> Any:
    """... and what it is: another spelling is no other unit."""
    return value.rpartition(" = ")[2] if isinstance(value, str) else value


def _mapping(content: storage.Content, name: str) -> Mapping[str, Any]:
    found = content.manifest.get(name)
    return found if isinstance(found, dict) else {}
