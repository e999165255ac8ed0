# SPDX-License-Identifier: Apache-2.0
"""One call of a learner: a step, several one after another, or a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax

from ..base.errors import NotSupportedError
from ..compiler.requirements import checked_args
from ..drivers.call_arguments import number_of_steps, one_step_of, steps_of
from ..drivers.running import Running, Stepper, read_states, write_states


def in_steps(run: Callable[..., Any]) -> Stepper:
    """The stepper of online steps: one, or one for each step of the arguments."""

    def call(learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        steps = number_of_steps(args)
        if steps is not None:
            return brainstate.transform.for_loop(
                lambda now: call(learner, now, given), steps_of(args, steps)
            )
        leaves = checked_args(learner.graph.module_info, one_step_of(args))
        return _moved(learner, run, leaves, given, 1)

    return call


def in_windows(run: Callable[..., Any]) -> Stepper:
    """The stepper of windows; the result of one of a single step has no axis of steps."""

    def call(learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        info, steps = learner.graph.module_info, number_of_steps(args)
        predictor = {} if learner.synthesizer is None else learner.synthesizer.values()
        if steps is not None and info.environment:
            raise NotSupportedError(
                f"the model reads {list(info.environment)} from brainstate.environ, which has one "
                "value for all steps of a call; pass it as an argument of the model, or learn with "
                "vjp_method='single-step'"
            )
        if steps is not None:
            leaves = jax.vmap(lambda one: checked_args(info, one))(steps_of(args, steps))
            return _moved(learner, run, leaves, predictor, steps)
        wrap = "wrap arguments of several steps in braintrace.MultiStepData"
        leaves = [leaf[None] for leaf in checked_args(info, one_step_of(args), wrap)]
        return jax.tree.map(lambda v: v[0], _moved(learner, run, leaves, predictor, 1))

    return call


def _moved(
    learner: Running, run: Callable[..., Any], leaves: list[Any], given: Any, steps: int
) -> Any:
    """The model's result, after which states and traces have moved on."""
    params, states = read_states(learner)
    out, new, traces = run(params, leaves, states, learner.read_traces(), given)
    write_states(learner, states, new)
    learner.write_traces(traces, steps)
    return out


def model_arguments(learner: Any, args: tuple[Any, ...]) -> Any:
    """What calls take: the arguments of the model. Learners that take more say so here."""
    return learner.run_call(args)
