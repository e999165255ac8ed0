# SPDX-License-Identifier: Apache-2.0
"""A learner as if its rule were D-RTRL, with the leaks of the model in front of its products.

e-prop's ``kappa`` takes the place of these leaks, and pp_prop and three-factor rules keep traces of
uniform layers beside their filters. Such a step is not the model's, so that BPTT of it is another
gradient. The paths that these rules follow, and where they drop others, are those of D-RTRL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import brainstate
import jax

from ..algorithms.base import LearningRule
from ..algorithms.d_rtrl import ParamDimRule
from ..algorithms.signals import RandomFeedback
from ..base import versions
from ..base.errors import NotSupportedError
from ..base.types import Path, State
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..executor.graph_executor import ETraceGraphExecutor
from .running import Running, Stepper, clear_filters


def follows_the_model(graph: ETraceGraph) -> bool:
    """Whether BPTT of the step that is run is that of the model."""
    moving = graph.moving
    return moving is None or (moving.kappa is None and not moving.keeps_traces)


@dataclass(frozen=True, eq=False)
class Exactly:
    """What a driver asks of a learner, with another executor of its model."""

    learner: Running
    executor: ETraceGraphExecutor

    @property
    def model(self) -> brainstate.nn.Module:
        return self.learner.model

    @property
    def param_states(self) -> Mapping[Any, State]:
        return self.learner.param_states

    @property
    def graph(self) -> ETraceGraph:
        return self.executor.graph

    @cached_property
    def rule(self) -> LearningRule:
        return ParamDimRule(self.executor.compiled)

    def states_of(self, kind: StateKind) -> Mapping[Path, State]:
        """The states of the model of a kind, by path."""
        return {slot.path: slot.state for slot in self.graph.module_info.slots_of(kind)}

    def stepping_by(self, stepper: Stepper) -> AbstractContextManager[None]:
        """Calls of the learner go to a stepper that meets this one meanwhile."""

        def step(_: Any, args: Any, given: Any) -> Any:
            refuse_errors(self.learner.rule, given)
            return stepper(self, args, given)

        return self.learner.stepping_by(step)


def refuse_errors(rule: LearningRule, given: Any) -> None:
    """Raise ``NotSupportedError`` where a step is given an error that is fed back."""
    if given is not None and isinstance(getattr(rule, "source", None), RandomFeedback):
        raise NotSupportedError(
            "there is no credit ledger with an error that is fed back, because it takes the place "
            "of the gradient of the loss; leave error out in step_fn"
        )


@contextmanager
def cleared_filters(learner: Any) -> Iterator[None]:
    """Filters in front of uniform states are zero meanwhile, as traces are."""
    slots = [slot for slot in learner.graph.executed.module_info.slots if slot.is_filter]
    before = [slot.state.value for slot in slots]
    clear_filters(learner)
    yield
    for slot, value in zip(slots, before, strict=True):
        slot.state.value = value


def without_moving(run: Callable[..., Any], *args: Any) -> Any:
    """``run(*args)``, which leaves all states as they are."""
    stateful = brainstate.transform.StatefulFunction(run, return_only_write=False)
    stateful.make_jaxpr(*args)
    program, trace = stateful.get_jaxpr(*args), stateful.get_state_trace(*args)
    tree = jax.tree.structure(stateful.get_out_shapes(*args))
    values = jax.tree.leaves((args, [state.value for state in trace.states]))
    return jax.tree.unflatten(tree, versions.jaxpr_as_fun(program)(*values))[0]
