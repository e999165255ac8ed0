# SPDX-License-Identifier: Apache-2.0
"""One call of a learner: a step, several one after another, or a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import jax

from ..compiler.requirements import checked_args
from ..drivers.call_arguments import checked_steps, number_of_steps, one_step_of, steps_of
from ..drivers.running import Running, read_states, write_states


@dataclass(frozen=True, eq=False)
class Steps:
    """The stepper that runs an online step, or one for each step of the arguments."""

    run: Callable[..., Any]

    def call(self, learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        """The model's result, [k, ...] for ``k`` steps."""
        steps = number_of_steps(args)
        if steps is not None:
            return brainstate.transform.for_loop(
                lambda now: self.call(learner, now, given), steps_of(args, steps)
            )
        leaves = checked_args(learner.graph.module_info, one_step_of(args))
        params, states = read_states(learner)
        out, new, traces = self.run(params, leaves, states, learner.read_traces(), given)
        write_states(learner, states, new)
        learner.write_traces(traces, 1)
        return out


@dataclass(frozen=True, eq=False)
class Windows:
    """The stepper that runs a window."""

    run: Callable[..., Any]

    def call(self, learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        """The model's result [k, ...], or that of a window of one step without an axis."""
        info, steps = learner.graph.module_info, number_of_steps(args)
        if steps is None:
            wrap = "wrap arguments of several steps in braintrace.MultiStepData"
            leaves = [leaf[None] for leaf in checked_args(info, one_step_of(args), wrap)]
        else:
            leaves = checked_steps(info, args, steps)
        params, states = read_states(learner)
        predictor = {} if learner.synthesizer is None else learner.synthesizer.values()
        out, new, traces = self.run(params, predictor, leaves, states, learner.read_traces())
        write_states(learner, states, new)
        learner.write_traces(traces, steps or 1)
        return out if steps is not None else jax.tree.map(lambda v: v[0], out)


class ModelArguments:
    """What a call takes: the arguments of the model. Learners that take more have another one."""

    def call(self, learner: Any, args: tuple[Any, ...]) -> Any:
        """Run the learner's stepper."""
        return learner.run_call(args)
