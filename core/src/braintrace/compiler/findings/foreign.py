# SPDX-License-Identifier: Apache-2.0
"""Layers of other libraries inside a model, whose weights the compiler cannot see as parameters."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import brainstate
import jax
import numpy as np

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import Path, show_path
from ..graph import ETraceGraph
from .record import Kind, warning

CONSTANT = warning(
    Kind.WEIGHTS_ARE_CONSTANTS,
    "the layer {layer} (a {type}) holds {count} floating-point arrays {shapes} that are constants "
    "of the step and are not trained: they are in no brainstate.ParamState",
    "Keep them in a brainstate.ParamState, whose value may be the layer itself if it is a pytree "
    "of arrays. If they are meant to stay, filter braintrace.CompilationWarning",
)

#: What libraries whose layers are functions call the arrays of a layer in a dict of its weights.
NAMES = frozenset("b bias biases embedding kernel kernels params scale w W weight weights".split())

#: Packages whose objects are no layers with weights of their own, or are known to the compiler.
KNOWN = frozenset(
    "brainevent brainstate braintrace brainunit builtins functools jax jaxlib ml_dtypes numpy "
    "optax saiunit scipy".split()
)


def foreign_findings(model: Any, found: ETraceGraph) -> Iterator[CompilationRecord]:
    """The layers of other libraries whose arrays are constants of the step."""
    constants = [c for c in found.module_info.jaxpr.consts if np.ndim(c)]
    if not constants:
        return
    for path, node in brainstate.graph.nodes(model).items():
        for name, value in vars(node).items():
            for where, layer in _layers(value, (*path, name), []):
                arrays = [v for v in _arrays(layer, []) if any(_same(v, c) for c in constants)]
                if arrays:
                    facts = {"layer": show_path(where), "count": len(arrays)}
                    told = {
                        "type": f"{type(layer).__module__}.{type(layer).__qualname__}",
                        "shapes": ", ".join(str([*v.shape]) for v in arrays),
                    }
                    yield CONSTANT(None, None, (), facts, **told)


def _layers(value: Any, path: Path, met: list[Any]) -> Iterator[tuple[Path, Any]]:
    """The layers among an attribute, what a collection holds and a function has around it.

    A dict with the names of weights, as flax and haiku make them, is a layer, too. Each comes with
    its path, or that of the function; ``met`` is what was looked at before.
    """
    if any(value is other for other in met):
        return
    met.append(value)
    if isinstance(value, Mapping) and NAMES & value.keys():
        yield path, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _layers(entry, (*path, key), met)
    elif isinstance(value, list | tuple):
        for key, entry in enumerate(value):
            yield from _layers(entry, (*path, key), met)
    elif _is_layer(value):
        yield path, value
    else:
        for entry in _around(value):
            yield from _layers(entry, path, met)


def _around(function: Any) -> list[Any]:
    """What a function closes over, wraps, is a method of, or is given beforehand."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, types.MethodType):
        return [function.__self__]
    if not isinstance(function, types.FunctionType):
        return [getattr(function, "__wrapped__", None)]
    cells = function.__closure__ or ()
    return [cell.cell_contents for cell in cells if cell != types.CellType()]


def _is_layer(value: Any) -> bool:
    """Whether this is an object of another library that is called, or is a pytree of its own."""
    package = type(value).__module__.partition(".")[0].partition("_")[0]
    if package in KNOWN or isinstance(value, (type, brainstate.State, brainstate.graph.Node)):
        return False
    return callable(value) or not jax.tree_util.all_leaves([value])


def _arrays(value: Any, met: list[Any]) -> Iterator[Any]:
    """The floating-point arrays that an object holds, at any depth, each once."""
    if any(value is other for other in met):
        return
    met.append(value)
    if isinstance(value, jax.Array | np.ndarray):
        if value.ndim and versions.is_float(value):
            yield value
        return
    for entry in _inside(value):
        yield from _arrays(entry, met)


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return [*value.values()]
    if isinstance(value, list | tuple):
        return value
    package = type(value).__module__.partition(".")[0]
    if package in KNOWN or isinstance(value, (type, brainstate.State, brainstate.graph.Node)):
        return ()
    leaves = [leaf for leaf in jax.tree.leaves(value) if leaf is not value]
    return [*leaves, *getattr(value, "__dict__", {}).values()]


def _same(array: Any, constant: Any) -> bool:
    """Whether a constant of a program is this array, or made from its numbers."""
    if array is constant or isinstance(array, jax.Array):
        return array is constant
    if np.shape(constant) != array.shape or not versions.is_float(constant):
        return False
    return np.array_equal(np.asarray(constant), array.astype(constant.dtype))
