# SPDX-License-Identifier: Apache-2.0
"""What a learner goes on from, each array under a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import saiunit

from ..base import versions
from ..base.errors import CompilationError
from ..base.types import Path, State, show_path
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..compiler.requirements import state_lookup
from . import storage

#: Libraries whose objects, unless they are modules, hold no states, or states of others.
WITHOUT_STATES = (
    "brainstate braintrace builtins functools jax jaxlib ml_dtypes numpy optax saiunit".split()
)


@dataclass(frozen=True, eq=False)
class Leaf:
    """One array: its state, and its ``value`` without the unit.

    ``name`` is the path of the state, and that inside of the state's value. ``kind`` is
    ``'param'``, ``'hidden'``, ``'other'``, ``'trace'``, ``'learner'``, ``'optimizer'`` or
    ``'random'``; ``unit`` text that is the same for equal units only, empty without one.
    """

    name: str
    kind: str
    unit: str
    state: State
    value: Any

    @property
    def type(self) -> storage.ArrayType:
        """Its shape, dtype and so on; raises ``TypeError`` for what is no array."""
        try:
            return storage.type_of(self.value)
        except TypeError as error:
            raise TypeError(
                f"{self.name} cannot be saved: {error}. Keep what is no array in an attribute"
            ) from None


def leaves_of(learner: Any, optimizer: Any) -> list[Leaf]:
    """All arrays of a learner, by name, in an order that depends on their paths alone."""
    states = _states(learner, optimizer)
    leaves = [leaf for state, (name, kind) in states.items() for leaf in _leaves(state, name, kind)]
    names = [leaf.name for leaf in leaves]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two arrays of the learner have the name {twice}")
    if any(versions.is_traced(leaf.value) for leaf in leaves):
        raise RuntimeError("a learner whose states are being traced cannot be saved or restored")
    return leaves


def _states(learner: Any, optimizer: Any) -> dict[State, tuple[str, str]]:
    """Every state with its name and kind; one that is met twice has the first name."""
    slots = _compiled(learner).module_info.slots
    kinds = {slot.state: slot.kind.value for slot in slots}
    found: dict[State, tuple[str, str]] = {brainstate.random.DEFAULT: ("random/default", "random")}
    for path, state in brainstate.graph.states(learner.model).items():
        kind = "param" if isinstance(state, brainstate.ParamState) else "other"
        found.setdefault(state, (named("model", path), kinds.get(state, kind)))
    for i, state in enumerate(learner.traces):
        found.setdefault(state, (f"trace/{i}", "trace"))
    for i, state in enumerate(learner.filters):
        found.setdefault(state, (f"filter/{i}", "trace"))
    for path, state in brainstate.graph.states(learner).items():
        found.setdefault(state, (named("learner", path), "learner"))
    for i, state in enumerate(slot.state for slot in slots if slot.state not in found):
        found[state] = (f"outside/{i}", kinds[state])
    for path, state in _states_of_optimizer(optimizer).items():
        found.setdefault(state, (named("optimizer", path), "optimizer"))
    return found


def _compiled(learner: Any) -> ETraceGraph:
    """The graph of a learner; raises ``CompilationError`` if it has other states, or is none."""
    if not learner.executor.is_compiled:
        raise CompilationError(
            "call compile_graph(*example_inputs) before saving or restoring a learner"
        )
    for slot in learner.graph.module_info.slots:
        found = state_lookup(learner.model, slot.path)
        if slot.kind is not StateKind.OTHER and found is not slot.state:
            raise CompilationError(
                f"the {slot.kind.value} state {show_path(slot.path)} was initialised again, "
                "replaced or deleted after compile_graph; call compile_graph again before saving "
                "or restoring the learner"
            )
    return learner.graph


def named(owner: str, path: Path) -> str:
    """``model/layers/0/weight``; a part that is neither a name nor a number is quoted."""
    names = (p if isinstance(p, str) and p.isidentifier() else repr(p) for p in path)
    return "/".join([owner, *names])


def _leaves(state: State, name: str, kind: str) -> Iterator[Leaf]:
    """The arrays of a state, in the order of its tree structure."""
    tree = jax.tree_util.tree_leaves_with_path(state.value, is_leaf=saiunit.math.is_quantity)
    for path, node in tree:
        unit = unit_of(node.unit) if saiunit.math.is_quantity(node) else ""
        leaves = jax.tree.leaves(node)
        for i, leaf in enumerate(leaves):
            place = jax.tree_util.keystr(path) + (f"[{i}]" if len(leaves) > 1 else "")
            yield Leaf(f"{name}{place}", kind, unit, state, leaf)


def unit_of(unit: saiunit.Unit) -> str:
    """``mV = 1.0 * 10.0^-3.0 m^2 kg s^-3 A^-1``: how a unit is written is not what it is."""
    return (
        f"{unit} = {float(unit.factor)!r} * {float(unit.base)!r}^{float(unit.scale)!r} {unit.dim}"
    )


def _states_of_optimizer(optimizer: Any) -> dict[Path, State]:
    """The states of an optimizer, by path.

    It raises ``TypeError`` when there are none, or it holds bare arrays, which could not be
    restored in their place.
    """
    if optimizer is None:
        return {}
    found = {path: part for path, part in parts_of(optimizer) if isinstance(part, brainstate.State)}
    bare = next(_without_states(optimizer, "optimizer"), None)
    if bare or not found:
        raise TypeError(
            f"{bare or f'optimizer (a {type(optimizer).__name__})'} holds no brainstate states; "
            "pass what holds its state in brainstate states: a brainstate.nn.Module, an optimizer "
            "of braintools, a State, or a dict, list or tuple of these. For optax that is "
            "learner.optimizer(transformation)"
        )
    return found


def _without_states(part: Any, name: str) -> Iterator[str]:
    """What among the entries of an optimizer holds no state."""
    if isinstance(part, Mapping | list | tuple):
        for key, entry in _inside(part):
            yield from _without_states(entry, f"{name}[{key!r}]")
    elif not any(isinstance(inner, brainstate.State) for _, inner in parts_of(part)):
        yield f"{name} (a {type(part).__name__})"


def parts_of(part: Any) -> Iterator[tuple[Path, Any]]:
    """An object and those inside of it, with their paths, each once.

    More than ``brainstate.graph`` finds: a schedule of braintools is a plain object with states.
    """
    found: list[Any] = []
    waiting: list[tuple[Path, Any]] = [((), part)]
    while waiting:
        path, part = waiting.pop()
        if not any(part is other for other in found):
            found.append(part)
            yield path, part
            waiting += [((*path, name), inner) for name, inner in _inside(part)][::-1]


def _inside(part: Any) -> Iterable[tuple[Any, Any]]:
    """The entries of a collection, or the attributes of an object that may hold states."""
    if isinstance(part, Mapping):
        return part.items()
    if isinstance(part, list | tuple):
        return enumerate(part)
    return sorted(vars(part).items()) if is_opened(part) else ()


def is_opened(part: Any) -> bool:
    """Whether an object is looked into: those of libraries that know nothing of states are not."""
    if isinstance(part, brainstate.State | type) or not hasattr(part, "__dict__"):
        return False
    library = type(part).__module__.partition(".")[0]
    return isinstance(part, brainstate.graph.Node) or library not in WITHOUT_STATES
