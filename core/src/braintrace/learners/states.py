# SPDX-License-Identifier: Apache-2.0
"""The states of a learner: those of its model by path, and its traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
from brainstate.util import FlattedDict

from ..algorithms.base import LearningRule
from ..algorithms.in_place import put_together
from ..base import versions
from ..base.errors import NoTraceError, NotSupportedError
from ..base.types import Path, show_path
from ..compiler.coverage import resolve_frozen
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..drivers.running import Drivers
from ..executor.graph_executor import ETraceGraphExecutor
from .options import options_of
from .restarts import follow_states


class _Apart(NamedTuple):
    """A value that is an array for each state; see :meth:`LearningRule.parted`."""

    value: Any


class EligibilityTrace(brainstate.ShortTermState):
    """A state that holds eligibility traces: a pytree of arrays, in the form of its rule.

    A loop may leave an array for each of several states; they are put together when they are read.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> learner = braintrace.compile(braintrace.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    >>> all(isinstance(trace, braintrace.EligibilityTrace) for trace in learner.traces)
    True
    """

    if not TYPE_CHECKING:

        @property
        def _value(self) -> Any:
            if self.is_apart:
                if self.held is None:
                    raise NotSupportedError(
                        "the state of a trace was read inside of step_fn, while the loop of "
                        "etrace_update holds its value; read learner.get_etrace_of(weight) there"
                    )
                with jax.ensure_compile_time_eval():
                    self._value = put_together(self.held)
            return vars(self)["_value"]

        @_value.setter
        def _value(self, value: Any) -> None:
            vars(self)["_value"] = value

        def __pretty_repr_item__(self, key: str, value: Any) -> Any:
            own = self.held if key == "_value" else value  # as it is held: nothing is put together
            return super().__pretty_repr_item__(key, own)

    @property
    def is_apart(self) -> bool:
        """Whether the value is held as :meth:`LearningRule.parted` has it."""
        return isinstance(vars(self)["_value"], _Apart)

    @property
    def held(self) -> Any:
        """The value as it is held, in either form."""
        value = vars(self)["_value"]
        return value.value if isinstance(value, _Apart) else value

    def hold_apart(self, value: Any) -> None:
        """Hold a value as :meth:`LearningRule.parted` has it."""
        vars(self)["_value"] = _Apart(value)


class StatesOfLearner(brainstate.nn.Module):
    """What a learner is asked of its states, and of its traces."""

    model: brainstate.nn.Module
    synthesizer: Any
    traces: tuple[EligibilityTrace, ...]
    _drivers: Drivers
    running_index: brainstate.State[Any]

    if TYPE_CHECKING:

        @property
        def executor(self) -> ETraceGraphExecutor: ...
        @property
        def rule(self) -> LearningRule: ...
        @property
        def graph(self) -> ETraceGraph: ...

    @property
    def path_to_states(self) -> dict[Path, brainstate.State[Any]]:
        """States of the compiled step, by path."""
        return self.executor.path_to_states

    @property
    def state_id_to_path(self) -> dict[brainstate.State[Any], Path]:
        """Path of each state of the compiled step; the key is the state itself."""
        return self.executor.state_id_to_path

    @property
    def own_options(self) -> dict[str, Any]:
        """What the learner was made with besides its configuration, by name."""
        named = options_of(type(self)).keys() - {"config"}
        return {name: value for name, value in vars(self).items() if name in named}

    def states_of(self, kind: StateKind) -> dict[Path, brainstate.State[Any]]:
        """States of the compiled step of a kind, by path."""
        slots = self.graph.module_info.slots_of(kind)
        return FlattedDict({slot.path: slot.state for slot in slots})

    @property
    def param_states(self) -> dict[Path, brainstate.State[Any]]:
        """All parameters of the model, and those of predictions, by path."""
        own = {} if self.synthesizer is None else self.synthesizer.states_by_path
        return FlattedDict({**brainstate.graph.states(self.model, brainstate.ParamState), **own})

    @property
    def trained_states(self) -> dict[Path, brainstate.State[Any]]:
        """Those of :attr:`param_states` that are not frozen, for an optimizer."""
        states = self.param_states
        frozen = resolve_frozen(states, self.executor.options.get("frozen", ()))
        return FlattedDict({path: s for path, s in states.items() if path not in frozen})

    @property
    def hidden_states(self) -> dict[Path, brainstate.State[Any]]:
        """Hidden states of the compiled step, by path."""
        follow_states(self)
        return self.states_of(StateKind.HIDDEN)

    @property
    def other_states(self) -> dict[Path, brainstate.State[Any]]:
        """Further states of the compiled step, by path."""
        follow_states(self)
        return self.states_of(StateKind.OTHER)

    def get_etrace_of(self, weight: Path | brainstate.State[Any]) -> list[dict[str, Any]]:
        """The traces of a parameter, one dict per relation and hidden group it takes part in.

        D-RTRL: an array for each trainable key, with a trailing state axis: [B, in, out, S] for a
        dense product of a batch. pp_prop: the filtered input ``"x"``, [B, in] (absent for an
        operation without one), and the filtered factor ``"f"``, [B, out, S].

        Parameters
        ----------
        weight
            The parameter or its path.

        Raises
        ------
        KeyError
            When the parameter has no trace, or filters in the place of one.
        """
        path, known = weight, self.rule.traced_paths
        if isinstance(weight, brainstate.State):
            path = next((p for p, s in self.param_states.items() if s is weight), ("?",))
        if path not in known:
            name = show_path(path) if isinstance(path, tuple) else repr(path)
            if isinstance(path, tuple) and "trace" in self.graph.coverage().get(path, ""):
                raise NoTraceError(
                    f"{name} has a filter of its input in place of a trace, because the dynamics "
                    "behind it are linear and the same everywhere; downstream='step' keeps a trace"
                )
            shown = sorted(map(show_path, known))
            raise NoTraceError(f"{name} has no trace; parameters with one are {shown}")
        return self.rule.of_parameter(self.read_traces(), path)

    def read_traces(self) -> tuple[Any, ...]:
        """The traces as they are, in the form of the rule."""
        return tuple(trace.value for trace in self.traces)

    @contextmanager
    def traces_in_parts(self) -> Iterator[None]:
        """Hold the traces as :meth:`LearningRule.parted` has them, for a loop."""
        kept, traces = self.traces, self.read_traces()
        parted = self.rule.parted(traces)
        if all(a is b for a, b in zip(parted, traces, strict=True)):
            yield
            return
        self.traces = tuple(map(EligibilityTrace, parted))
        try:
            yield
            joined = self.rule.joined(self.read_traces())
        finally:
            self.traces = kept
        self.write_traces(joined, 0)

    @property
    def held_traces(self) -> tuple[Any, ...]:
        """The traces as they are held, in either form of the rule."""
        return tuple(trace.held for trace in self.traces)

    def may_hold_apart(self, args: Any) -> bool:
        """Whether traces may be left in parts between two calls: outside of all transformations."""
        if not self.rule.has_parts or versions.several_devices() or _is_inside():
            return False
        return not any(map(versions.is_traced, jax.tree.leaves((args, self.held_traces))))

    @contextmanager
    def traces_stay_in_parts(self) -> Iterator[None]:
        """The same between calls: what comes out is put together when somebody reads it."""
        kept = self.traces
        self.traces = self._parts()
        try:
            yield
        finally:
            parts, self.traces = self.traces, kept
            for trace, part in zip(kept, parts, strict=True):
                if part is not trace:
                    trace.hold_apart(part.value)
                    part.value = None

    def _parts(self) -> tuple[Any, ...]:
        """The states in which compiled loops have the traces in parts, and the others."""
        places = self._drivers.parts
        found: list[brainstate.State[Any]] = []
        for trace, value in zip(self.traces, self.rule.parted(self.held_traces), strict=True):
            if value is trace.held and not trace.is_apart:
                found.append(trace)
                continue
            part = places.setdefault(trace, brainstate.ShortTermState(None))
            part.value = value
            trace.hold_apart(None)  # the loop may write over what nobody else holds
            found.append(part)
        return tuple(found)

    def clear_parts(self) -> bool:
        """Set all traces to zero where some are held in parts, and stay so; whether they are."""
        apart = [trace.is_apart for trace in self.traces]
        if not any(apart) or _is_inside():
            return False
        for trace in self.traces:
            zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), trace.held)
            if trace.is_apart:
                trace.hold_apart(zeros)
            else:
                trace.value = zeros
        return True

    def write_traces(self, traces: Any, steps: Any) -> None:
        """Take the traces after some more steps; ``None`` leaves them as they are."""
        for state, trace in zip(self.traces, traces or (), strict=traces is not None):
            state.value = trace
        self.running_index.value = self.running_index.value + steps


def _is_inside() -> bool:
    """Whether a transformation is running: one of brainstate, or a plain one that makes tracers."""
    return bool(brainstate.State(None).stack_level) or versions.is_traced(jnp.zeros(()))
