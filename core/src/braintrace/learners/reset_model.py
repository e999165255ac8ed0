# SPDX-License-Identifier: Apache-2.0
"""Resetting a learner, and the states of a compiled model, for the same batch or another one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import State, restore_values, show_path
from ..compiler.batch_states import reset_batched_states
from ..compiler.module_info import ModuleInfo, StateKind
from ..compiler.requirements import check_same_states, state_lookup
from ..executor.graph_executor import ETraceGraphExecutor
from .kept_places import as_before
from .restarts import follow_states, start_anew


def reset_model(
    executor: ETraceGraphExecutor, batch_size: int | None, **kwargs: Any
) -> ETraceGraphExecutor:
    """Reset the states of a compiled model, by ``brainstate.nn.reset_all_states``.

    Returns ``executor``, or, if the states came out for another batch, one that is compiled for it.
    It raises ``ValueError`` when they came out with other shapes, or the model cannot be compiled;
    all states are then as they were, and those that were made anew are those that were there.
    """
    model, info = executor.model, executor.graph.module_info
    states = dict(brainstate.graph.states(model))
    before = {s: s.value for s in states.values()}
    try:
        if executor.options.get("vmap"):
            reset_batched_states(model, batch_size, **kwargs)
        else:
            brainstate.nn.reset_all_states(model, batch_size=batch_size, **kwargs)
        _warn_of_unreset(model, info, before)
        change = _batch_change(model, info, before, batch_size)
        return executor if change is None else _for_batch(executor, *change)
    except Exception:
        restore_values(before)
        for path, state in states.items():
            if state_lookup(model, path) is not state:
                _put_back(state_lookup(model, path[:-1]), path[-1], state)
        raise


def _put_back(owner: Any, name: Any, state: State) -> None:
    if isinstance(owner, list | dict):
        owner[name] = state
    else:
        setattr(owner, name, state)


def _batch_change(
    model: Any, info: ModuleInfo, before: Mapping[Any, Any], batch_size: int | None
) -> tuple[int, int] | None:
    """The batch before and after, from the shapes of the hidden states; ``None`` if they stay.

    All of them must have changed in one axis, of one length before and one after.
    """
    changes: set[Any] = set()
    changed = None
    for slot in info.slots_of(StateKind.HIDDEN):
        both = before[slot.state], state_lookup(model, slot.path).value
        old, new = (jnp.shape(jax.tree.leaves(value)[0]) for value in both)
        differing = [(a, b) for a, b in zip(old, new, strict=False) if a != b]
        changes.add(differing[0] if len(old) == len(new) and len(differing) == 1 else None)
        if changed is None and old != new:
            changed = show_path(slot.path), old, new
    if changed is None:
        return None
    if len(changes) == 1 and None not in changes:
        return changes.pop()
    path, old, new = changed
    raise ValueError(
        f"batch_size={batch_size} resets {path} to shape {new}, but the learner was compiled for "
        f"{old}; to go on with another batch, all hidden states must come out with another length "
        "of one axis. Otherwise initialise the model and compile again"
    )


def _for_batch(executor: ETraceGraphExecutor, old: int, new: int) -> ETraceGraphExecutor:
    """An executor of the same model for another batch."""
    other = executor.for_model(executor.model, compiled=False)
    with executor.graph.module_info.as_when_traced() as args:
        resized = jax.tree.map(partial(_resized, old=old, new=new), args)
        try:
            other.compile_graph(*resized)
        except Exception as error:
            shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(resized)]
            raise ValueError(
                f"the model cannot be compiled for a batch of {new} instead of {old}, with "
                f"arguments of shapes {shapes}: {error}. Initialise it and call compile_graph with "
                "example inputs"
            ) from error
    return other


def _resized(leaf: Any, old: int, new: int) -> Any:
    """The type of an argument for another batch.

    The batch of an array is its first axis, or else the only one, that is as long as the old batch.
    An array without such an axis stays as it is. Where that is not what the caller means, the next
    call is refused: arguments must have the shapes that were compiled.
    """
    found = [k for k, length in enumerate(leaf.shape) if length == old]
    if not found or (found[0] and len(found) > 1):
        return leaf
    shape = (*leaf.shape[: found[0]], new, *leaf.shape[found[0] + 1 :])
    return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _warn_of_unreset(model: Any, info: ModuleInfo, before: Mapping[Any, Any]) -> None:
    """Say so when hidden states were left as they were, as their module resets nothing."""
    for slot in info.slots_of(StateKind.HIDDEN):
        along = (state_lookup(model, slot.path[:k]) for k in reversed(range(len(slot.path))))
        owners = (found for found in along if isinstance(found, brainstate.nn.Module))
        owner = next(owners, model)  # the innermost module that holds the state
        resets = type(owner).reset_state is not brainstate.nn.Module.reset_state
        same = state_lookup(model, slot.path) is slot.state
        if same and slot.state.value is before[slot.state] and not resets:
            versions.warn(
                f"model_states=True leaves the hidden state {show_path(slot.path)} as it is, "
                f"because {type(owner).__name__} has no reset_state. Define "
                "reset_state(batch_size=None) beside init_state"
            )
            return


def reset_state(
    self: Any, batch_size: int | None = None, *, model_states: bool = False, **kwargs: Any
) -> None:
    """Set the traces (and with ``model_states=True`` those of the model) to their start.

    Parameters
    ----------
    batch_size
        Passed on to the model's ``reset_state``, so that it has an effect with
        ``model_states=True`` only. When the model's states come out for another batch
        than before, the model is compiled for it, which takes as long as compiling it did. The
        batch of an argument is then its first axis, or else its only one, that is as long as
        the old batch.
    model_states
        Whether the model's states are reset too, by ``brainstate.nn.reset_all_states``. A
        module without a ``reset_state`` of its own keeps its states.

    Notes
    -----
    Where ``brainstate.nn.reset_all_states(model)`` is called by itself, inside of ``jit``, too,
    the traces of all examples start anew with the hidden states. A value that is assigned to a
    hidden state in another way leaves them as they are. To evaluate in the middle of a
    sequence, reset a ``copy.deepcopy(model)``, or put back the values of all of
    ``brainstate.graph.states(learner)``.

    Start values are constants to every gradient, also where ``init_state`` computes them from
    parameters: what these do in steps counts, what they do to the start does not. A parameter
    that steps do not read is refused when the model is compiled. To train a start, add
    ``braintrace.element_wise(start)`` to the state in the first step.

    Raises
    ------
    ValueError
        When the model's states come out with other shapes than those of another batch, or
        the model cannot be compiled for it; the states then stay as they were.
    """
    follow_states(self)
    check_same_states(self.model, self.graph.module_info)
    with self._watch.paused():
        before, values = self.executor, {}
        if model_states:
            values = {path: state.value for path, state in _states_of(self).items()}
        executor = reset_model(before, batch_size, **kwargs) if model_states else before
        if executor is not before:
            self.filters = ()
            self.adopt(executor)
            for trace, zero in zip(self.traces, self.rule.init(), strict=True):
                trace.value = zero
        follow_states(self)
        if model_states:
            as_before(values, _states_of(self))
        start_anew(self)


def _states_of(learner: Any) -> dict[Any, Any]:
    """The states of a learner but for traces in parts, which lie on one device and stay there."""
    states = brainstate.graph.states(learner).items()
    return {path: state for path, state in states if not getattr(state, "is_apart", False)}
