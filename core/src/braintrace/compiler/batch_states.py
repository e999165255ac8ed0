# SPDX-License-Identifier: Apache-2.0
"""A model that is written for one example and run for a batch by ``vmap``: states and program.

Every state of such a model but its parameters and random states holds the values of all examples
along a leading axis. Which ones do is known by a tag, never guessed from shapes.

The step is traced and rewritten for one example, so that ETP operations are out of branches and
loops, and only then mapped: a branch per example would otherwise become a select of branches with
an operation in each, and map its weights as well.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import CompilationError, ExampleInputError, NotSupportedError
from ..base.types import Path, how_many, named_leaves, restore_values, show_path
from ..jaxprs.depends import Along, program_influences
from ..jaxprs.run import flatten, run_inlined
from .control.selects import with_whole_branches
from .module_info import ModuleInfo, StateKind

#: Tag of a state whose value has a leading axis of examples.
BATCHED = "braintrace.batched"

#: Tag by which brainstate marks a state that all examples share, such as the pointer of a delay.
SHARED = "INIT_NO_BATCHING"


def is_batched(state: brainstate.State[Any]) -> bool:
    """Whether the value of a state has a leading axis of examples."""
    return BATCHED in (state.tag or ())


def batch_size_of(model: brainstate.nn.Module) -> int:
    """How many examples the states of a model hold: all that have an axis of them, the same."""
    sizes: dict[int, Path] = {}
    for path, state in batched_states(model).items():
        for shape in map(jnp.shape, jax.tree.leaves(state.value)):
            if not shape:
                raise CompilationError(
                    f"the state {show_path(path)} was made for a batch and now holds a value "
                    "without an axis of examples; use reset_state of the learner to reset it"
                )
            sizes[shape[0]] = path
    if not sizes:
        raise CompilationError(
            "vmap=True, but no state of the model has an axis of examples; let "
            "braintrace.compile(model, ..., vmap=True) initialise the model"
        )
    if len(sizes) > 1:
        (one, a), (other, b), *_ = sizes.items()
        raise CompilationError(
            f"the state {show_path(a)} holds {how_many(one, 'example')}, but {show_path(b)} holds "
            f"{other}; initialise the model again"
        )
    return next(iter(sizes))


def batched_states(model: brainstate.nn.Module) -> dict[Path, brainstate.State[Any]]:
    """The states with an axis of examples, by path."""
    return {p: s for p, s in brainstate.graph.states(model).items() if is_batched(s)}


@contextmanager
def one_example(model: brainstate.nn.Module) -> Iterator[None]:
    """Inside, the states of a batched model hold the values of the first example."""
    before = {state: state.value for state in batched_states(model).values()}
    try:
        restore_values({state: _first(value) for state, value in before.items()})
        yield
    finally:
        restore_values(before)


def examples_in(args: tuple[Any, ...], batch_size: int | None = None) -> int:
    """How many examples the arguments of a step hold: the leading axis of the arrays.

    ``batch_size`` is what it has to be, a positive integer; it is needed if none is an array.
    """
    given = None if batch_size is None else _checked_size(batch_size)
    size = leading_axis(args, given, f"batch_size is {given}")
    if size is None:
        raise ValueError(
            "vmap=True needs batch_size=..., because no example input has an axis of examples"
        )
    return size


def leading_axis(args: tuple[Any, ...], size: int | None, given: str) -> int | None:
    """The length of the leading axis of all arrays; it has to be ``size``, as ``given`` says."""
    for place, leaf in named_leaves(args):
        shape = jnp.shape(leaf)
        if shape and size not in (None, shape[0]):
            raise ValueError(
                f"argument{place} has shape {shape}, but {given}; with "
                "vmap=True, every argument but a scalar has a leading axis of examples"
            )
        if shape and size is None:
            size, given = shape[0], f"the arguments before it have {shape[0]}"
    return size


@cache
def _mapped_type() -> type:
    """The type of the values that ``vmap`` maps."""
    found: list[type] = []
    jax.vmap(lambda v: found.append(type(v)))(jnp.zeros(1))
    return found[0]


def _is_mapped(tree: Any) -> bool:
    return any(isinstance(leaf, _mapped_type()) for leaf in jax.tree.leaves(tree))


def refuse_lost_examples(old: Mapping[Path, Any], new: Mapping[Path, Any]) -> None:
    """Refuse a call under ``vmap`` that maps the new value of a state but not the old one."""
    for path, value in new.items():
        if _is_mapped(value) and not _is_mapped(old[path]):
            raise NotSupportedError(
                f"the learner is called under vmap, which maps its inputs but not its states: the "
                f"state {show_path(path)} would have a value for each example and no place for "
                "them. Use braintrace.compile(model, ..., vmap=True), or initialise the model and "
                "call compile_graph in brainstate.transform.vmap_new_states(state_tag='new', "
                "axis_size=...) and then call brainstate.nn.Vmap(learner, vmap_states='new')"
            )


def repeated_like(value: Any, like: Any) -> Any:
    """``value`` for each example, where ``like`` has an axis of examples and it has none."""

    def repeat(leaf: Any, other: Any) -> Any:
        shape, wanted = jnp.shape(leaf), jnp.shape(other)
        fits = len(wanted) > len(shape) and wanted[len(wanted) - len(shape) :] == shape
        return jnp.broadcast_to(leaf, wanted) if fits else leaf

    return jax.tree.map(repeat, value, like)


def init_batched_states(
    model: brainstate.nn.Module, batch_size: int, *args: Any, **kwargs: Any
) -> None:
    """Initialise a model that is written for one example with the states of a batch.

    Its ``init_state``, which ``brainstate.nn.init_all_states`` calls with the further arguments,
    makes the states of one example. Afterwards, every state but parameters and random states has a
    leading axis of length ``batch_size``. What ``init_state`` draws from ``brainstate.random`` is
    drawn for each example.
    """
    size = _checked_size(batch_size)
    init = partial(brainstate.nn.init_all_states, model, *args, **kwargs)
    for state in batched_states(model).values():  # of an earlier initialisation
        state.value = _first(state.value)
        state.tag = {*(state.tag or ())} - {BATCHED}
    keys = [generator.value for generator in _generators(model)]
    with _without_batch_size(model, "init_state", size):
        init()
    drawn = any(g.value is not key for g, key in zip(_generators(model), keys, strict=False))
    values: Mapping[Path, Any] = {}
    if drawn:
        values, _ = _each(model, size, init, {})
        init()  # what a state made under vmap refers to ends with it
    for path, state in brainstate.graph.states(model).items():
        if not _is_shared(state):
            state.value = values[path] if drawn else _repeated(state.value, size)
            state.add_tag(BATCHED)


def reset_batched_states(
    model: brainstate.nn.Module, batch_size: int | None = None, **kwargs: Any
) -> None:
    """Reset the states of a batched model, each example on its own.

    ``batch_size`` is the number of examples from now on (default: as before); another one is
    refused when a ``reset_state`` leaves a state as it is. The rest is for ``reset_all_states``.
    """
    present = batch_size_of(model)
    size = present if batch_size is None else _checked_size(batch_size)
    given = {path: state.value for path, state in batched_states(model).items()}
    if size != present:
        given = {path: _repeated(_first(value), size) for path, value in given.items()}
    reset = partial(brainstate.nn.reset_all_states, model, **kwargs)
    with _without_batch_size(model, "reset_state", size):
        values, kept = _each(model, size, reset, given)
    if kept and size != present:
        raise ValueError(
            f"batch_size={size} cannot reset {show_path(kept[0])}, which holds "
            f"{how_many(present, 'example')}: no reset_state of the model sets it. Define "
            "reset_state beside init_state"
        )
    for path, state in brainstate.graph.states(model).items():
        if path in values and path not in kept:
            state.value = values[path]
            state.add_tag(BATCHED)


@contextmanager
def _without_batch_size(model: brainstate.nn.Module, method: str, size: int) -> Iterator[None]:
    """Say which method of the model cannot do without an axis of examples, and what to do.

    Python's error is then of an argument ``batch_size`` that is missing, or of ``None`` for it.
    """
    try:
        yield
    except TypeError as error:
        if not any(word in str(error) for word in ("batch_size", "None")):
            raise
        frames = [(f.f_code, line) for f, line in traceback.walk_tb(error.__traceback__)]
        own = [(code, line) for code, line in frames if code.co_name == method]
        for node in brainstate.graph.nodes(model).values() if not own else ():
            function: Any = getattr(type(node), method, None)
            with suppress(TypeError, AttributeError):
                if any(p.default is p.empty for p in _named(function)[1:]):
                    own.append((function.__code__, function.__code__.co_firstlineno))
        if not own:
            raise
        code, line = own[-1]
        raise ExampleInputError(
            f"{code.co_qualname} ({code.co_filename}:{line}) cannot make the states of one "
            f"example, for which vmap=True calls it without batch_size ({error}). If the model is "
            f"written for a batch, pass batch_size={size} without vmap=True; if it is for one "
            "example, let batch_size=None mean states without an axis of examples"
        ) from error


def _named(function: Any) -> list[inspect.Parameter]:
    """The parameters of a function, without ``*args`` and ``**kwargs``."""
    found = inspect.signature(function).parameters.values()
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _each(
    model: brainstate.nn.Module, size: int, call: Callable[[], None], values: Mapping[Path, Any]
) -> tuple[dict[Path, Any], list[Path]]:
    """What a function does to the states of every example, and which it leaves as they are.

    ``call`` initialises or resets the states of one example; it is run under ``vmap``. It starts
    from ``values`` by path. Afterwards, the states of the model hold what they held before, but for
    those that all examples share, and random states have moved on.
    """
    states = dict(brainstate.graph.states(model))
    generators = _generators(model)
    before = {state: state.value for state in states.values()}
    splits = [jax.random.split(generator.value, size + 1) for generator in generators]
    left: list[Path] = []

    def one(keys: Sequence[Any], given: Mapping[Path, Any]) -> tuple[Any, Any]:
        restore_values(dict(zip(generators, keys, strict=True)))
        restore_values({states[path]: value for path, value in given.items()})
        with brainstate.StateTraceStack():  # writing what belongs to vmap is meant here
            call()
        after = dict(brainstate.graph.states(model))
        left[:] = [p for p, v in given.items() if after[p] is states[p] and after[p].value is v]
        common = {p: s for p, s in after.items() if _is_shared(s)}
        changed = (p for p, s in common.items() if s.value is not before.get(s, s.value))
        mine = {p: s.value for p, s in after.items() if p not in common}
        return mine, {p: common[p].value for p in changed if common[p] not in generators}

    try:
        each = jax.vmap(one, out_axes=(0, None), axis_size=size)
        found, shared = each([split[1:] for split in splits], dict(values))
    finally:
        restore_values(before)
        restore_values({g: split[0] for g, split in zip(generators, splits, strict=True)})
    for path, value in shared.items():
        states[path].value = value
    return found, left


def _generators(model: brainstate.nn.Module) -> list[brainstate.random.RandomState]:
    """The random state of ``brainstate`` and those of a model."""
    states = (brainstate.random.DEFAULT, *brainstate.graph.states(model).values())
    return [*dict.fromkeys(s for s in states if isinstance(s, brainstate.random.RandomState))]


def _is_shared(state: brainstate.State[Any]) -> bool:
    """Whether a state of the model is one for all examples."""
    kinds = (brainstate.ParamState, brainstate.random.RandomState)
    return isinstance(state, kinds) or SHARED in (state.tag or ())


def _first(value: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], value)


def _repeated(value: Any, size: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], size, axis=0), value)


def _checked_size(batch_size: Any) -> int:
    try:
        size = -1 if isinstance(batch_size, bool) else operator.index(batch_size)
    except TypeError:
        raise TypeError(f"batch_size must be a positive integer, got {batch_size!r}") from None
    if size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}")
    return size


def arguments_of_one(args: tuple[Any, ...], size: int) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Types of the arguments of one example, and which leaves have an axis of examples: arrays."""
    leading_axis(args, size, f"the states of the model hold {how_many(size, 'example')}")

    def of_one(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if jnp.ndim(leaf) else leaf

    return jax.tree.map(of_one, args), tuple(jnp.ndim(leaf) > 0 for leaf in jax.tree.leaves(args))


def in_batch(info: ModuleInfo, args: Sequence[bool], size: int) -> ModuleInfo:
    """The step of a batch of ``size`` examples, from that of one.

    ``args`` says of each leaf of its arguments whether every example has its own. What comes from
    ``brainstate.environ`` is the same for all.
    """
    num_args, num_out, old, new = info.num_args, info.num_out, info.jaxpr.invars, info.jaxpr.outvars
    states = [slot.state for slot in info.slots for _ in slot.leaves]
    each = [*args, *[False] * (num_args - len(args)), *map(is_batched, states)]
    random = brainstate.random.RandomState
    keys = [i for i, state in enumerate(states, num_args) if isinstance(state, random)]
    axes = [0 if batched or i in keys else None for i, batched in enumerate(each)]
    own = {i for i, axis in enumerate(axes) if axis == 0}
    behind = program_influences(info.jaxpr, Along.VALUES)
    for slot in info.slots:
        shared = [num_out + i for i in slot.leaves if axes[num_args + i] is None]
        if any(slot.kind is StateKind.HIDDEN or own & behind[k] for k in shared):
            raise CompilationError(
                f"the state {show_path(slot.path)} has no axis of examples, but with vmap=True "
                "each example has a value of its own. Make its module an attribute of the model, "
                "and let braintrace.compile(model, ..., vmap=True) initialise the model"
            )
    results = [0] * num_out + axes[num_args:]
    whole = with_whole_branches(info.jaxpr)
    run = jax.vmap(lambda *v: run_inlined(whole, v), axes, results, axis_size=size)

    def step(*inputs: Any) -> list[Any]:
        """A random state is split: one part for each example, and one for the next step."""
        split = {i: jax.random.split(inputs[i], size + 1) for i in keys}
        found = run(*(split[i][1:] if i in keys else v for i, v in enumerate(inputs)))
        for i in keys:
            k = num_out + i - num_args
            found[k] = inputs[i] if new[k] is old[i] else split[i][0]
        return found

    pairs = zip((var.aval for var in old), each, strict=True)
    types = [aval.update(shape=(size, *aval.shape)) if b else aval for aval, b in pairs]
    try:
        jaxpr = versions.make_jaxpr(step, *types)
    except NotImplementedError as error:  # of a primitive of another library
        raise NotSupportedError(
            f"vmap=True maps the step over examples, which JAX refuses: {error}. Write the model "
            "for a batch, or leave that operation out of it"
        ) from error
    hidden = [num_out + i for slot in info.slots_of(StateKind.HIDDEN) for i in slot.leaves]
    flat = flatten(jaxpr, range(len(jaxpr.invars)), range(len(jaxpr.outvars)), hidden)
    return replace(info, jaxpr=flat)
