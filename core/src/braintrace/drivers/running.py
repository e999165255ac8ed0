# SPDX-License-Identifier: Apache-2.0
"""What drivers and learners ask of each other: a learner calls a stepper, a driver may bring its
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import brainstate

from ..algorithms.base import LearningRule
from ..base.types import Path, State
from ..compiler.batch_states import refuse_lost_examples
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..compiler.requirements import check_states
from .compiled import Drivers


class Stepper(Protocol):
    """What a call of a learner does: the model moves on, and so do traces, or a record."""

    def call(self, learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        """The model's result; ``given`` is what the algorithm gets besides the arguments."""


class Running(Protocol):
    """What a driver or a stepper asks of a learner."""

    model: brainstate.nn.Module
    vjp_method: str
    synthesizer: Any
    _drivers: Drivers
    _optimizers: list[Any]

    @property
    def running_index(self) -> State:
        """How many steps the traces have seen."""

    @property
    def rule(self) -> LearningRule:
        """The learning rule."""

    @property
    def graph(self) -> ETraceGraph:
        """What the compiler found."""

    @property
    def param_states(self) -> Mapping[Any, State]:
        """The parameters, by path."""

    def states_of(self, kind: StateKind) -> Mapping[Any, State]:
        """The states of a kind, by path."""

    @property
    def call_stepper(self) -> Stepper:
        """What a call does."""

    def stepping_by(self, stepper: Stepper) -> AbstractContextManager[None]:
        """Calls go to another stepper meanwhile."""

    def read_traces(self) -> tuple[Any, ...]:
        """The traces as they are."""

    def write_traces(self, traces: Any, steps: int) -> None:
        """Take the traces after some steps."""


def read_states(learner: Running) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Values of the parameters, and of the other states, of the compiled step."""
    check_states(learner.model, learner.graph.module_info)
    slots = learner.graph.module_info.slots
    values = {slot.path: slot.state.value for slot in slots}
    return {s.path: values.pop(s.path) for s in slots if s.kind is StateKind.PARAM}, values


def write_states(learner: Running, old: Mapping[Path, Any], new: Mapping[Path, Any]) -> None:
    """Take the states after a step, those that :func:`read_states` gave before."""
    refuse_lost_examples(old, new)
    for slot in learner.graph.module_info.slots:
        if slot.path in old:
            slot.state.value = new[slot.path]
