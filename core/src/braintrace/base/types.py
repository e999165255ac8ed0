# SPDX-License-Identifier: Apache-2.0
"""States, their paths, and their arrays; physical units as part of a pytree's structure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import saiunit

Path = tuple[Any, ...]
State = brainstate.State[Any]


def show_path(path: Path) -> str:
    """A state's path as every text writes it: ``rnn.layers[0].weight``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def how_many(number: int, noun: str) -> str:
    """``2 steps``, ``1 step``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def restore_values(values: Mapping[State, Any]) -> None:
    """Give states earlier values of theirs, of another structure, too."""
    for state, value in values.items():
        try:
            state.restore_value(value)
        except ValueError:  # refused to a state whose structure was changed; an assignment is not
            state.value = value


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree, each with its place as text; a quantity is one leaf."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=saiunit.math.is_quantity)
    keystr = jax.tree_util.keystr
    return [(keystr(place), leaf) for place, held in found for leaf in jax.tree.leaves(held)]


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of a pytree, or of arrays of these types."""
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(tree))


def check_module(model: Any) -> None:
    """Raise ``TypeError`` for a model that is none."""
    if isinstance(model, brainstate.nn.Module):
        return
    name = getattr(model, "__name__", "")
    got = f"the class {name}: make one, {name}(...)" if isinstance(model, type) else ""
    raise TypeError(f"model must be a brainstate.nn.Module, got {got or type(model).__name__}")


# --- units ----------------------------------------------------------------------------------------
#
# The unit of a ``saiunit.Quantity`` belongs to its tree structure, so that equal structures mean
# equal units and arrays can be taken out and put back without a thought for units. What is left to
# do is here: saying how two structures differ, and converting to the units of a structure.


def unit_change(expected: Any, found: Any) -> str | None:
    """``"the unit V instead of mV"`` if two tree structures differ in units alone.

    Of several units that differ the first is named.
    """
    (wanted, bare), (got, other) = units_of(expected), units_of(found)
    if bare != other:
        return None
    pairs = zip(wanted, got, strict=True)
    return next((f"{_named(b)} instead of {_named(a)}" for a, b in pairs if a != b), None)


def in_units_of(expected: Any, tree: Any) -> Any:
    """``tree`` with its quantities in the units of a tree structure, where dimensions agree.

    A tree of another structure is returned as it is.
    """
    wanted, bare = units_of(expected)
    leaves, treedef = _flatten(tree)
    return tree if treedef != bare else treedef.unflatten(map(_converted, leaves, wanted))


def units_of(structure: Any) -> tuple[list[saiunit.Unit], Any]:
    """The unit of every leaf, and the structure without units."""
    leaves, bare = _flatten(structure.unflatten([0.0] * structure.num_leaves))
    return [saiunit.get_unit(leaf) for leaf in leaves], bare


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=saiunit.math.is_quantity)


def _converted(leaf: Any, unit: saiunit.Unit) -> Any:
    own = saiunit.get_unit(leaf)
    if own == unit or not own.has_same_dim(unit) or not saiunit.math.is_quantity(leaf):
        return leaf
    return leaf.in_unit(unit)


def _named(unit: saiunit.Unit) -> str:
    return "no unit" if unit == saiunit.UNITLESS else f"the unit {unit}"
