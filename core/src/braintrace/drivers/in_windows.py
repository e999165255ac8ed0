# SPDX-License-Identifier: Apache-2.0
"""The gradient of a sequence that is learned in windows of several steps."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.types import start_of_sum
from . import guards
from .loops import Progress, in_parts
from .options import GradOptions, Outcome, checked_losses, common_length, scale_of, weighted_sum
from .running import Running
from .steps import add_gradients, end_of_sum


def in_windows(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence in windows: one reverse mode per window, added up."""
    steps, size = common_length(sequences), int(options.chunk_size or 1)
    weights = dict(enumerate(state for _, state in options.weights))
    scale = scale_of(options.reduction, mask, steps)
    names = options.names(learner.param_states)
    progress = Progress(-(-steps // size) if options.progress else 0)

    def one(total: Any, numbered: Any) -> tuple[Any, Any]:
        number, now = numbered

        def loss() -> Any:
            total, found = _window_loss(learner, options, now)
            return total * scale, found

        differentiated = brainstate.transform.grad(loss, weights, has_aux=True, check_states=False)
        grads, (losses, aux) = differentiated()  # zero for weights that the step does not use
        flags = None
        if options.check:
            named = [(f"the gradient of {names[state]}", grads[i]) for i, state in weights.items()]
            flags = guards.flags_of(learner.rule, losses, named, learner.read_traces())
        progress.advance(number, losses)
        total = jax.tree.map(add_gradients, total, tuple(grads[i] for i in weights))
        return total, (losses, aux, flags)

    if not options.carry_trace:
        learner.write_traces(learner.rule.init(), 0)
    values = tuple(state.value for state in weights.values())
    total, found = in_parts(one, jax.tree.map(start_of_sum, values), (mask, *sequences), size)
    if not options.carry_trace:
        learner.write_traces(learner.rule.init(), 0)
    return Outcome(jax.tree.map(lambda v, like: end_of_sum(v, like, 1.0), total, values), *found)


def _window_loss(learner: Running, options: GradOptions, inputs: tuple[Any, ...]) -> Any:
    """The loss of a window, and ``k`` losses with auxiliary data."""
    mask, *sequences = inputs
    size = common_length(tuple(sequences))
    stepper, calls = learner.call_stepper, []

    def counted(*call: Any) -> Any:
        calls.append(call)
        return stepper(*call)

    with learner.stepping_by(counted):
        result = options.step_fn(*sequences)
    if len(calls) != 1:
        raise ValueError(
            f"step_fn must call the learner exactly once per window; it called it {len(calls)} "
            "times"
        )
    shape = (size,) if mask is None else mask.shape
    when = "with chunk_size and so a loss for each step of a window, "
    losses, aux = checked_losses(result, options.has_aux, shape, when)
    short = [jnp.shape(v) for v in jax.tree.leaves(aux) if jnp.shape(v)[:1] != (size,)]
    if short:
        raise TypeError(
            f"with chunk_size, aux must have an entry for each of the {size} steps of the window "
            f"along its first axis; got shape {short[0]}"
        )
    return weighted_sum(losses, mask), (losses, aux)
