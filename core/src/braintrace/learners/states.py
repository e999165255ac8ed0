# SPDX-License-Identifier: Apache-2.0
"""The states of a learner: those of its model by path, and its traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import brainstate
from brainstate.util import FlattedDict

from ..algorithms.base import LearningRule
from ..base.errors import NoTraceError
from ..base.types import Path, show_path
from ..compiler.coverage import resolve_frozen
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..executor.graph_executor import ETraceGraphExecutor
from .options import options_of
from .restarts import follow_states


class EligibilityTrace(brainstate.ShortTermState):
    """A state that holds eligibility traces: a pytree of arrays, in the form of its rule.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> learner = braintrace.compile(braintrace.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    >>> all(isinstance(trace, braintrace.EligibilityTrace) for trace in learner.traces)
    True
    """


class StatesOfLearner(brainstate.nn.Module):
    """What a learner is asked of its states, and of its traces."""

    model: brainstate.nn.Module
    synthesizer: Any
    traces: tuple[EligibilityTrace, ...]
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

    def write_traces(self, traces: Any, steps: Any) -> None:
        """Take the traces after some more steps; ``None`` leaves them as they are."""
        for state, trace in zip(self.traces, traces or (), strict=traces is not None):
            state.value = trace
        self.running_index.value = self.running_index.value + steps
