# SPDX-License-Identifier: Apache-2.0
"""What drivers and learners ask of each other: a learner calls a stepper, its own or the one that
a driver brings, and compiled drivers are kept for the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import brainstate
import jax
import jax.numpy as jnp

from ..algorithms.base import LearningRule
from ..base import versions
from ..base.errors import NotSupportedError
from ..base.types import Path, State
from ..compiler.batch_states import refuse_lost_examples
from ..compiler.environment import changed_setting, recorded_settings
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..compiler.requirements import check_same_states, check_states, checked_args
from ..executor.graph_executor import ETraceGraphExecutor
from .call_arguments import number_of_steps, one_step_of, steps_of
from .donating import Donating
from .explicit import Like, automatic, automatic_with_states
from .in_stages import Way

Stepper = Callable[[Any, tuple[Any, ...], Any], Any]
"""What a call of a learner does: the model moves on, and so do traces, or a record.

``stepper(learner, arguments, given)`` returns the model's result; ``given`` is what the algorithm
gets besides the arguments.
"""


def nothing(result: Any) -> None:
    """Results lie where the arguments do."""


#: How many compiled drivers are kept.
MOST = 16


class Drivers:
    """The drivers that were used last, each with its key and settings of ``brainstate.environ``.

    A setting that anything in a driver reads is a constant of the compiled program. ``looks_left``:
    at how many gradients to look for arrays of zeros. ``parts``: by trace, the state in which they
    have it in parts. ``last_way``: how the longest block of the gradient that was traced last is
    run.
    """

    def __init__(self) -> None:
        self.looks_left = 2
        self.parts: dict[State, State] = {}
        self.last_way: Way | None = None
        self._kept: list[tuple[tuple[Any, ...], dict[str, Any], Callable[..., Any]]] = []

    def clear(self) -> None:
        self._kept.clear()

    def get(
        self,
        key: tuple[Any, ...],
        run: Callable[..., Any],
        like: Like = nothing,
        traces: Callable[[], Iterable[State]] = tuple,
        states: Callable[[], Iterable[State]] = tuple,
    ) -> Callable[..., Any]:
        """The driver for a function and options, which is ``run`` if there is none yet.

        ``like`` says where its results lie on a mesh with explicit axes, which the arguments lie
        on, or ``states()``; ``traces()`` are states that it may write over themselves.
        """
        found = next((d for d in self._kept if d[0] == key and changed_setting(d[1]) is None), None)
        if found is None:
            self._warn_of_new_functions(*key)
            settings: dict[str, Any] = {}

            def recorded(*args: Any) -> Any:
                with recorded_settings() as read:
                    result = automatic_with_states(run, args, like, states())
                settings.update(read)
                return result

            found = key, settings, Donating(recorded, traces)
        self._kept = [*(d for d in self._kept if d is not found), found][-MOST:]
        return found[2]

    def _warn_of_new_functions(self, step_fn: Any, *options: Any) -> None:
        """A function written inside a loop is a new one each time, and compiled each time."""
        code = getattr(step_fn, "__code__", None)
        same = {fn for (fn, *others), _, _ in self._kept if others == [*options]}
        if code is not None and sum(getattr(fn, "__code__", None) is code for fn in same) == 3:
            versions.warn(
                f"step_fn ({code.co_filename}:{code.co_firstlineno}) is a new function at each "
                "call and is compiled anew each time; define it once, outside of the loop"
            )


class Running(Protocol):
    """What a driver or a stepper asks of a learner."""

    model: brainstate.nn.Module
    vjp_method: str
    synthesizer: Any
    _drivers: Drivers
    _optimizers: list[Any]
    traces: Any

    @property
    def running_index(self) -> State: ...
    @property
    def rule(self) -> LearningRule: ...
    @property
    def executor(self) -> ETraceGraphExecutor: ...
    @property
    def graph(self) -> ETraceGraph: ...
    @property
    def param_states(self) -> Mapping[Any, State]: ...
    @property
    def trained_states(self) -> Mapping[Any, State]: ...
    @property
    def call_stepper(self) -> Stepper: ...
    def states_of(self, kind: StateKind) -> Mapping[Any, State]: ...
    def stepping_by(self, stepper: Stepper) -> AbstractContextManager[None]: ...
    def read_traces(self) -> tuple[Any, ...]: ...
    @property
    def held_traces(self) -> tuple[Any, ...]: ...
    def may_hold_apart(self, args: Any) -> bool: ...
    def traces_in_parts(self) -> AbstractContextManager[None]: ...
    def traces_stay_in_parts(self) -> AbstractContextManager[None]: ...
    def write_traces(self, traces: Any, steps: Any) -> None: ...


def read_states(learner: Running) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Values of the parameters, without a derivative where frozen, and of the other states."""
    graph = learner.graph
    if graph.filtered is not None:  # uniform states are no hidden states of that step
        check_same_states(learner.model, graph.module_info)
    check_states(learner.model, graph.executed.module_info)
    slots = graph.executed.module_info.slots
    values = {slot.path: slot.state.value for slot in slots}
    params = {s.path: values.pop(s.path) for s in slots if s.kind is StateKind.PARAM}
    held = {path: jax.lax.stop_gradient(params[path]) for path in learner.graph.frozen & {*params}}
    return {**params, **held}, values


def clear_filters(learner: Running) -> None:
    """Let no credit of earlier steps be in the filters in front of uniform states."""
    for slot in learner.graph.executed.module_info.slots:
        if slot.is_filter:
            slot.state.value = jnp.zeros_like(slot.state.value)


def write_states(learner: Running, old: Mapping[Path, Any], new: Mapping[Path, Any]) -> None:
    """Take the states after a step, those that :func:`read_states` gave before."""
    refuse_lost_examples(old, new)
    for slot in learner.graph.executed.module_info.slots:
        if slot.path in old:
            slot.state.value = new[slot.path]


def let_vary(learner: Running, args: Any) -> None:
    """States and traces are in a loop what they are after its steps, inside of ``shard_map``."""
    if versions.types_vary():
        from .by_device import vary_as

        vary_as(learner, args)


# --- the steppers of learners --------------------------------------------------------------------


def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step or a window as a whole: outside of jit, the loops in it would be compiled each time.

    It is a function of parameters, arguments, states, traces, and more; what it returns are the
    model's result, the states and the traces. ``how`` arrays are divided is a constant.
    """

    def run(how: Any, params: Any, leaves: Any, states: Any, traces: Any, *more: Any) -> Any:
        def own(*args: Any) -> Any:
            return automatic(step, args, lambda result: (None, states, traces))

        args = params, leaves, states, traces, *more
        if not versions.types_vary():
            return own(*args)
        from .by_device import alone  # which nothing else needs

        return alone(own, args)

    return jax.jit(run, static_argnums=0)


def steps_by_call(run: Callable[..., Any]) -> Stepper:
    """The stepper of online steps: one, or one for each step of the arguments."""

    def call(learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        steps, loop = number_of_steps(args), brainstate.transform.for_loop
        if steps is not None:
            let_vary(learner, args)
            return loop(lambda now: call(learner, now, given), steps_of(args, steps))
        leaves = checked_args(learner.graph.module_info, one_step_of(args))
        return _moved(learner, run, leaves, given, 1)

    return call


def window_by_call(run: Callable[..., Any]) -> Stepper:
    """The stepper of windows; the result of one of a single step has no axis of steps."""

    def call(learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        info, steps = learner.graph.module_info, number_of_steps(args)
        predictor = {} if learner.synthesizer is None else learner.synthesizer.values()
        if steps is None:
            wrap = "wrap arguments of several steps in braintrace.MultiStepData"
            leaves = [leaf[None] for leaf in checked_args(info, one_step_of(args), wrap)]
            return jax.tree.map(lambda v: v[0], _moved(learner, run, leaves, predictor, 1))
        if info.environment:
            raise NotSupportedError(
                f"the model reads {list(info.environment)} from brainstate.environ, which has one "
                "value for all steps of a call; pass it as an argument of the model, or learn with "
                "vjp_method='single-step'"
            )
        leaves = jax.vmap(lambda one: checked_args(info, one))(steps_of(args, steps))
        return _moved(learner, run, leaves, predictor, steps)

    return call


def _moved(learner: Running, run: Any, leaves: list[Any], given: Any, steps: int) -> Any:
    """The model's result, after which states and traces have moved on."""
    params, states = read_states(learner)
    index = learner.running_index.value
    how, traces = learner.rule.executor.division, learner.read_traces()
    out, new, traces = run(how, params, leaves, states, traces, given, index)
    try:
        write_states(learner, states, new)
    except brainstate.TraceContextError as error:
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            error.add_note(
                "Under jax.disable_jit(), brainstate.transform.grad cannot differentiate what "
                "writes states, and leaves tracers in the parameters: make the model anew. Take "
                "etrace_grad, or put `with jax.disable_jit(False):` around the gradient"
            )
        raise
    learner.write_traces(traces, steps)
    return out
