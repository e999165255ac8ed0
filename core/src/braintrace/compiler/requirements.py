# SPDX-License-Identifier: Apache-2.0
"""What a call must bring: arguments and states like those that the model was compiled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.errors import CompilationError
from ..base.types import Path, State, in_units_of, named_leaves, show_path, unit_change
from .batch_states import is_batched
from .environment import changed_setting
from .keywords import shown
from .module_info import ModuleInfo, StateKind, StateSlot


def checked_args(info: ModuleInfo, args: tuple[Any, ...], remedy: str | None = None) -> list[Any]:
    """The leaves of the arguments of a step, as compiled; ``remedy``: what to do about shapes."""
    args = in_units_of(info.arg_treedef, info.with_environment(args))
    treedef = jax.tree.structure(args)
    if treedef != info.arg_treedef:
        change = unit_change(info.arg_treedef, treedef)
        raise ValueError(
            f"the arguments have {change}, for which the learner was compiled"
            if change
            else f"the arguments have structure {shown(treedef)}, but the learner was compiled for "
            f"{shown(info.arg_treedef)}; one with a default is given in both or in neither"
            + ("; steps in a list become one array by jnp.stack" * ("[" in shown(treedef)))
        )
    checked = []
    for (name, leaf), var in zip(named_leaves(args), info.jaxpr.invars, strict=False):
        aval = var.aval
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError):
            raise TypeError(
                f"argument{name} is a {type(leaf).__name__}; expected an array of shape "
                f"{aval.shape} and dtype {aval.dtype}"
            ) from None
        if leaf.shape != aval.shape or leaf.dtype != aval.dtype:
            raise ValueError(
                f"argument{name} has shape {leaf.shape} and dtype {leaf.dtype}, but the "
                f"learner was compiled for shape {aval.shape} and dtype {aval.dtype}; "
                + ("convert it" if leaf.shape == aval.shape else remedy or _fit(leaf, aval))
            )
        checked.append(leaf)
    return checked


def _fit(leaf: Any, aval: Any) -> str:
    """What to do about an argument of another shape."""
    if leaf.shape[1:] == aval.shape:
        return "several steps are for etrace_grad and its like, or for braintrace.MultiStepData"
    if leaf.shape == aval.shape[1:]:
        return "an axis in front is missing; sequences for etrace_grad and its like are [T, ...]"
    if axes := jax.sharding.get_abstract_mesh().manual_axes:
        return (
            f"inside of jax.shard_map along {sorted(axes)}, a learner is compiled for the examples "
            "of one device"
        )
    return "for another batch size, call reset_state(batch_size=..., model_states=True)"


def check_states(model: Any, info: ModuleInfo) -> None:
    """States must be those that were compiled, of the same shapes."""
    check_same_states(model, info)
    for slot in info.slots:
        if change := _change(info, slot, slot.state.value):
            raise ValueError(f"the state {show_path(slot.path)} has {'; '.join(change)}")


def _change(info: ModuleInfo, slot: StateSlot, value: Any) -> tuple[str, str] | None:
    """In what a value is not like that of a state when it was compiled, and what to do."""
    leaves, treedef = jax.tree.flatten(value)
    if treedef != slot.treedef:
        found = unit_change(slot.treedef, treedef) or f"structure {treedef}"
        return (
            f"{found}, unlike when the learner was compiled",
            "assign it as it was, or compile again",
        )
    for leaf, var in zip(leaves, info.invars_of(slot), strict=True):
        dtype = leaf.dtype if isinstance(leaf, jax.Array) else jnp.result_type(leaf)
        for what, now in (("shape", jnp.shape(leaf)), ("dtype", dtype)):
            if now != (then := getattr(var.aval, what)):
                return (
                    f"{what} {now}, but the learner was compiled for {then}",
                    "convert what is assigned to it, or compile again",
                )
    return None


def check_same_states(model: Any, info: ModuleInfo) -> None:
    """No state may be made anew after compiling, and no setting that the model reads may change."""
    for slot in info.slots:
        own = slot.kind is not StateKind.OTHER and not slot.is_filter
        if own and state_lookup(model, slot.path) is not slot.state:
            raise CompilationError(_replaced(slot))
    if changed := changed_setting(info.settings):
        raise CompilationError(
            f"the model reads {changed}; set it as it was, call compile_graph again, or call the "
            "model itself to evaluate it"
        )


def states_made_anew(model: Any, info: ModuleInfo) -> set[State]:
    """The states that stand where those stood that were compiled, without parameters.

    Raises ``CompilationError`` when one is of another kind, shape, dtype or unit.
    """
    made = set()
    for slot in info.slots:
        if slot.kind is StateKind.PARAM or slot.is_filter:
            continue
        state = state_lookup(model, slot.path)
        if state is not slot.state and isinstance(state, brainstate.State):
            if difference := _difference(info, slot, state):
                raise CompilationError(f"{_replaced(slot)}. It has {difference}")
            made.add(state)
    return made


def _difference(info: ModuleInfo, slot: StateSlot, state: State) -> str | None:
    """In what a state differs from the one that was compiled."""
    kind = brainstate.ParamState, brainstate.HiddenState
    if [isinstance(state, k) for k in kind] != [isinstance(slot.state, k) for k in kind]:
        return f"the type {type(state).__name__} in place of {type(slot.state).__name__}"
    if is_batched(state) != is_batched(slot.state):
        return f"{'an' if is_batched(state) else 'no'} axis of examples"
    change = _change(info, slot, state.value)
    return None if change is None else change[0]


def _replaced(slot: StateSlot) -> str:
    return (
        f"the {slot.kind.value} state {show_path(slot.path)} was initialised again, replaced or "
        "deleted after compile_graph; call compile_graph again. To reset states or change the "
        "batch size, use reset_state(batch_size=..., model_states=True) in place of init_all_states"
    )


def state_lookup(model: Any, path: Path) -> Any:
    """The object at a state's path in a model."""
    found = model
    for part in path:
        by_key = isinstance(found, Mapping) and part in found
        by_index = isinstance(part, int) and isinstance(found, Sequence)
        found = found[part] if by_key or by_index else getattr(found, str(part), None)
    return found
