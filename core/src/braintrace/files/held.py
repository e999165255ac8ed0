# SPDX-License-Identifier: Apache-2.0
"""What a learner holds that a file keeps, each array under a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import brainstate
import jax
import saiunit

from ..base import versions
from ..base.errors import CompilationError
from ..base.types import Path, State, show_path
from ..compiler.graph import ETraceGraph
from ..compiler.program import StateKind
from . import storage

#: Libraries whose objects, unless they are modules, hold no states, or states of others.
WITHOUT_STATES = (
    "brainstate braintrace builtins functools jax jaxlib ml_dtypes numpy optax saiunit".split()
)


class Learner(Protocol):
    """What is used of an ``ETraceAlgorithm``."""

    model: brainstate.nn.Module
    traces: tuple[Any, ...]

    @property
    def executor(self) -> Any:
        """What runs a step, with the options it was made with."""

    @property
    def graph(self) -> ETraceGraph:
        """What the compiler found."""

    @property
    def rule(self) -> Any:
        """The learning rule."""

    @property
    def own_options(self) -> dict[str, Any]:
        """What its class was made with, by name."""


# --- what is held --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Held:
    """One array that a learner goes on from.

    Attributes
    ----------
    name
        The path of its state, and that inside of the state's value.
    kind
        ``'param'``, ``'hidden'``, ``'other'``, ``'trace'``, ``'learner'``, ``'optimizer'`` or
        ``'random'``.
    unit
        Its unit, as text that is the same for equal units only; empty without one.
    state
        The state.
    value
        The array, without its unit.
    """

    name: str
    kind: str
    unit: str
    state: State
    value: Any


def held_by(learner: Learner, optimizer: Any) -> list[Held]:
    """All arrays of a learner, by name, in an order that depends on their paths alone."""
    states = _states(learner, optimizer)
    held = [leaf for state, (name, kind) in states.items() for leaf in _leaves(state, name, kind)]
    if len({leaf.name for leaf in held}) < len(held):
        names = [leaf.name for leaf in held]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two arrays of the learner have the name {twice}")
    if any(versions.is_traced(leaf.value) for leaf in held):
        raise RuntimeError("a learner whose states are being traced cannot be saved or restored")
    return held


def _states(learner: Learner, optimizer: Any) -> dict[State, tuple[str, str]]:
    """Every state with its name and kind; one that is met twice has the first name."""
    info = _compiled(learner).module_info
    kinds = {slot.state: slot.kind.value for slot in info.slots}
    found: dict[State, tuple[str, str]] = {brainstate.random.DEFAULT: ("random/default", "random")}
    for path, state in brainstate.graph.states(learner.model).items():
        found.setdefault(state, (named_leaves("model", path), kinds.get(state) or _kind(state)))
    for i, state in enumerate(learner.traces):
        found.setdefault(state, (f"trace/{i}", "trace"))
    for path, state in brainstate.graph.states(learner).items():
        found.setdefault(state, (named_leaves("learner", path), "learner"))
    outside = [slot for slot in info.slots if slot.state not in found]
    for i, slot in enumerate(outside):
        found[slot.state] = (f"outside/{i}", slot.kind.value)
    for path, state in _states_of_optimizer(optimizer).items():
        found.setdefault(state, (named_leaves("optimizer", path), "optimizer"))
    return found


def _compiled(learner: Learner) -> ETraceGraph:
    """The graph of a learner whose states are those it was compiled with.

    Raises
    ------
    CompilationError
        When it is not compiled, or the states were made anew since.
    """
    if not learner.executor.is_compiled:
        raise CompilationError(
            "call compile_graph(*example_inputs) before saving or restoring a learner"
        )
    present = {*brainstate.graph.states(learner.model).values()}
    for slot in learner.graph.module_info.slots:
        if slot.kind is not StateKind.OTHER and slot.state not in present:
            raise CompilationError(
                f"the {slot.kind.value} state {show_path(slot.path)} was initialised again, "
                "replaced or deleted after compile_graph; call compile_graph again before saving "
                "or restoring the learner"
            )
    return learner.graph


def _kind(state: State) -> str:
    """The kind of a state that the step does not use."""
    kind = StateKind.PARAM if isinstance(state, brainstate.ParamState) else StateKind.OTHER
    return kind.value


def named_leaves(owner: str, path: Path) -> str:
    """``model/layers/0/weight``; a part that is neither a name nor a number is quoted."""
    names = (p if isinstance(p, str) and p.isidentifier() else repr(p) for p in path)
    return "/".join([owner, *names])


def _leaves(state: State, name: str, kind: str) -> Iterator[Held]:
    """The arrays of a state, in the order of its tree structure."""
    tree = jax.tree_util.tree_leaves_with_path(state.value, is_leaf=saiunit.math.is_quantity)
    for path, node in tree:
        unit = unit_of(node.unit) if saiunit.math.is_quantity(node) else ""
        leaves = jax.tree.leaves(node)
        for i, leaf in enumerate(leaves):
            place = jax.tree_util.keystr(path) + (f"[{i}]" if len(leaves) > 1 else "")
            yield Held(f"{name}{place}", kind, unit, state, leaf)


def unit_of(unit: saiunit.Unit) -> str:
    """``mV = 1.0 * 10.0^-3.0 m^2 kg s^-3 A^-1``: how a unit is written is not what it is."""
    return (
        f"{unit} = {float(unit.factor)!r} * {float(unit.base)!r}^{float(unit.scale)!r} {unit.dim}"
    )


def _states_of_optimizer(optimizer: Any) -> dict[Any, State]:
    """The states of an optimizer, by path.

    Raises
    ------
    TypeError
        When there are none, or it holds bare arrays, which could not be restored in their place.
    """
    if optimizer is None:
        return {}
    bare = _bare_part(optimizer, "optimizer")
    found = {path: part for path, part in parts_of(optimizer) if isinstance(part, brainstate.State)}
    if bare or not found:
        raise TypeError(
            f"{bare or f'optimizer (a {type(optimizer).__name__}) holds no brainstate states'}; "
            "pass what holds its state in brainstate states: a brainstate.nn.Module, an optimizer "
            "of braintools, a State, or a dict, list or tuple of these. For optax that is "
            "learner.optimizer(transformation)"
        )
    return found


def _bare_part(part: Any, name: str) -> str | None:
    """What among the parts of an optimizer holds no state, if anything does."""
    if isinstance(part, Mapping):
        return _first(_bare_part(value, f"{name}[{key!r}]") for key, value in part.items())
    if isinstance(part, list | tuple):
        return _first(_bare_part(value, f"{name}[{i}]") for i, value in enumerate(part))
    if any(isinstance(inner, brainstate.State) for _, inner in parts_of(part)):
        return None
    return f"{name} (a {type(part).__name__}) holds no brainstate states"


def parts_of(part: Any, path: Path = (), seen: set[int] | None = None) -> Iterator[Any]:
    """An object and those it holds, with their paths, each once.

    More than ``brainstate.graph`` finds: a schedule of braintools is a plain object with states.
    """
    seen = set() if seen is None else seen
    if id(part) not in seen:
        seen.add(id(part))
        yield path, part
        for name, inner in _inside(part):
            yield from parts_of(inner, (*path, name), seen)


def _inside(part: Any) -> Iterable[tuple[Any, Any]]:
    """What an object holds; those of libraries that know nothing of states are left alone."""
    if isinstance(part, Mapping):
        return part.items()
    if isinstance(part, list | tuple):
        return enumerate(part)
    return sorted(vars(part).items()) if is_opened(part) else ()


def is_opened(part: Any) -> bool:
    if isinstance(part, brainstate.State | type) or not hasattr(part, "__dict__"):
        return False
    library = type(part).__module__.partition(".")[0]
    return isinstance(part, brainstate.graph.Node) or library not in WITHOUT_STATES


def _first(found: Iterator[str | None]) -> str | None:
    return next((text for text in found if text is not None), None)


def type_of(leaf: Held) -> storage.ArrayType:
    try:
        return storage.type_of(leaf.value)
    except TypeError as error:
        raise TypeError(
            f"{leaf.name} cannot be saved: {error}. Keep what is no array in an attribute"
        ) from None
