# SPDX-License-Identifier: Apache-2.0
"""Traces start anew with the states of a model, also where nobody tells the learner.

Traces belong to the states that they are derivatives of, but
``brainstate.nn.reset_all_states(model)`` knows nothing of them. Therefore hidden states call a hook
of brainstate when they are assigned, and the functions that are running tell whether that is a
reset. The traces are written at that place: in a jitted function, a branch or a loop they start
anew whenever the states do. States that were made anew are found by their paths at the next call.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.types import Path, State, show_path
from ..compiler.batch_states import repeated_like
from ..compiler.module_info import StateKind
from ..compiler.requirements import states_made_anew
from ..drivers.call_arguments import number_of_steps
from ..drivers.running import clear_filters
from .kept_places import started
from .putback import PutBack, reference

#: Methods of modules that set their states to a start.
RESETS = ("reset_state", "init_state")

#: What ``reset_all_states`` and ``init_all_states`` call, with the arguments ``target, fn_name``.
CALL_ALL = getattr(brainstate.nn.call_all_fns, "__code__", None)

#: What runs when a module is called.
CALL = brainstate.nn.Module.__call__.__code__

#: Modules with a frame in every call that runs several steps.
DRIVERS = f"{__package__}.sequences"

#: How often states are made anew until it is said what that costs.
OFTEN = 3


class Watch:
    """Which hidden states of a learner's model were reset since the last call of the learner.

    The states call it after every assignment.
    """

    def __init__(self, learner: Any) -> None:
        self._learner = weakref.ref(learner)
        self._hooks: dict[State, Any] = {}
        self._reset: set[State] = set()
        self._assigned: set[State] = set()
        self._put_back = PutBack(learner.running_index)
        self._start: Any = lambda: None
        self._times = 0
        self._paused = False
        self._refused: NotSupportedError | None = None
        self._started: list[weakref.ref[Any]] = []

    def of(self, learner: Any) -> Watch:
        """That of a learner, which a copy of it has still to get."""
        return self if self._learner() is learner else Watch(learner)

    def have_started(self, traces: Any) -> None:
        """These traces are those before the first step."""
        leaves = jax.tree.leaves(traces)
        traced = any(map(versions.is_traced, leaves))
        self._started = [] if traced else [*map(weakref.ref, leaves)]

    def are_started(self, traces: Any) -> bool:
        """Whether they are the same arrays as those before the first step."""
        leaves, known = jax.tree.leaves(traces), self._started
        same = len(leaves) == len(known) and all(
            a is b() for a, b in zip(leaves, known, strict=True)
        )
        return same and not any(leaf.is_deleted() for leaf in leaves)

    def look_at(self, states: Iterable[State]) -> None:
        """Be called by these states, and by no others."""
        for state, hook in self._hooks.items():
            state.unregister_hook(hook)
        self._hooks = {state: state.register_hook("write_after", self) for state in states}

    def watched_of(self, learner: Any) -> set[State] | None:
        """The states that are looked at, if it is the watch of this learner."""
        return {*self._hooks} if self._learner() is learner else None

    def __call__(self, context: Any) -> None:
        """A state was assigned."""
        learner = self._learner()
        if learner is None:
            self.look_at(())
            return
        if self._paused or context.state not in self._hooks:  # a clone of it has the same hooks
            return
        if not versions.is_traced(context.value) and versions.several_devices():
            self._refused = _refusal(learner)  # where it lies, a gradient of a call does not see
        if not (calls := resets_in_progress(learner, learner.model)):
            self._put_back.assigned(context.value)
            return
        again = self._is_new(learner)
        of_before = context.state not in self._assigned or not again
        self._assigned.add(context.state)
        if not again:
            self._note(learner, context.state, calls)
        self._put_back.replaced(context.old_value if of_before else ())

    def _note(self, learner: Any, state: State, calls: list[tuple[Any, bool]]) -> None:
        """This state was reset, and perhaps others with it: if all were, the traces are, too."""
        modules = [*brainstate.graph.nodes(learner.model).values()]
        for owner, everything in calls:
            if everything:
                self._reset |= {*brainstate.graph.states(owner).values()}
            elif any(owner is module for module in modules):
                self._reset.add(state)
        if not self._left(learner, self._reset):
            self._start_anew(learner)

    def made_anew(self, learner: Any, states: Iterable[State]) -> None:
        """Start anew, as these hidden states were made anew; say so if others were not reset."""
        self._reset |= {*states} | self._assigned
        if left := self._left(learner, self._reset):
            versions.warn(
                f"some hidden states of the model were made anew and others go on: {left}. All "
                "traces start anew. Reset the others too, by "
                "learner.reset_state(batch_size=..., model_states=True)"
            )
        self._start_anew(learner)
        self._assigned.clear()
        self._times += 1
        if self._times == OFTEN:
            versions.warn(
                f"states of the model were made anew {OFTEN} times after compile_graph, and the "
                "learner is compiled for them each time. Reset them in place of that, by a "
                "reset_state that assigns to the value of the state that is there"
            )

    def call(self, learner: Any) -> None:
        """The learner goes on: say so if some hidden states were reset and others were not."""
        self._put_back.settle()
        if not self._assigned:
            return
        started, left = not self._reset, self._left(learner, self._assigned)
        self._reset.clear()
        self._assigned.clear()
        if not left:
            return
        if started:
            versions.warn(
                f"a reset of the model left hidden states as they were: {left}. All traces start "
                "anew. Define reset_state(batch_size=None) in the modules of these states"
            )
            return
        versions.warn(
            f"some hidden states of the model were reset and others were not: {left}. The traces "
            "go on as they were. Reset all, by brainstate.nn.reset_all_states(model), or the "
            "traces, by learner.reset_state()"
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, resets are those of the learner itself."""
        self._paused = True
        self._put_back.forget()
        try:
            yield
        finally:
            self._paused, self._refused = False, None
            self._reset.clear()
            self._assigned.clear()

    def _left(self, learner: Any, reset: set[State]) -> str:
        """The paths of hidden states that are not among these."""
        hidden = _hidden(learner)
        return ", ".join(show_path(path) for s, path in hidden.items() if s not in reset)

    def _is_new(self, learner: Any) -> bool:
        """Whether the traces started anew and no step has run since."""
        return learner.running_index.value is self._start()

    def _start_anew(self, learner: Any) -> None:
        """Write the traces; of a reset of many states, only the first one does."""
        if not self._is_new(learner):
            self._put_back.begin()
            start_anew(learner)
        self._start = reference(learner.running_index.value)
        self._reset.clear()


def begin_call(learner: Any, args: Any = (), lead: int = 1) -> None:
    """Before states and traces move on: take account of resets that passed the learner by.

    ``args`` have ``lead`` axes in front, of steps and examples, and a ``MultiStepData`` one more.
    """
    follow_states(learner)
    if learner.is_driven:
        return
    learner._watch.call(learner)
    if versions.several_devices():
        lead += lead == 1 and number_of_steps(args) is not None
        if refused := _refusal(learner, args, lead) or learner._watch._refused:
            raise refused


def _refusal(learner: Any, *args: Any) -> NotSupportedError | None:
    """Why states, or arguments, may not lie where they were put onto several devices by hand.

    Sums over examples are divided as these are.
    """
    if not learner.is_compiled:
        return None
    from .by_hand import refusal, take_places  # which one device has no need of

    take_places(learner, *args)
    return refusal(learner, *args)


def follow_states(learner: Any) -> None:
    """Go on with the states that the model has now, and with traces of zero if they are others.

    States that were made anew since the learner was compiled are found by their paths. Raises
    ``CompilationError`` when one is of another shape, dtype or unit.
    """
    if not learner.is_compiled or learner.is_driven:
        return
    if made := states_made_anew(learner.model, learner.graph.module_info):
        learner.adopt(learner.executor.for_model(learner.model))
        if hidden := made.intersection(_hidden(learner)):
            learner._watch.made_anew(learner, hidden)


def start_anew(learner: Any) -> None:
    """Set the traces to zero."""
    start_traces(learner)
    clear_filters(learner)
    learner.running_index.value = jnp.zeros((), jnp.int32)


def start_traces(learner: Any) -> None:
    """Set the traces to zero: arrays that are zero from the last time on stay, they are large."""
    watch = learner._watch
    if learner.clear_parts():
        watch.have_started(())
        return
    if watch.are_started(learner.read_traces()):
        return
    zeros = started(learner.rule.init, learner.read_traces())
    for trace, zero in zip(learner.traces, zeros, strict=True):
        # the traces of a learner that was compiled under vmap have an axis of examples
        trace.value = repeated_like(zero, trace.value)
    watch.have_started(learner.read_traces())


def _hidden(learner: Any) -> dict[State, Path]:
    """The hidden states that a learner is compiled with."""
    slots = learner.graph.module_info.slots_of(StateKind.HIDDEN)
    return {slot.state: slot.path for slot in slots}


def resets_in_progress(learner: Any, model: Any) -> list[tuple[Any, bool]]:
    """What is being reset by the functions that are running, and whether with all inside of it.

    Nothing, when a step of the model is running: what it assigns, and resets, is part of the step;
    and nothing when a reset runs the learner, whose steps assign.
    """
    found: list[tuple[Any, bool]] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code is CALL_ALL and frame.f_locals.get("fn_name") in RESETS:
            found.append((frame.f_locals.get("target"), True))
        elif code.co_name in RESETS and code.co_varnames:
            owner = frame.f_locals.get(code.co_varnames[0])
            if isinstance(owner, brainstate.nn.Module):
                found.append((owner, False))
        elif code is CALL:
            called = frame.f_locals.get("self")
            if called is model or (called is learner and not found):
                return []
        elif not found and frame.f_globals.get("__name__", "").startswith(DRIVERS):
            return []
        frame = frame.f_back
    return found
