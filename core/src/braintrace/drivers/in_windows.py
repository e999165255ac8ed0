# SPDX-License-Identifier: Apache-2.0
"""The gradient of a sequence that is learned in windows of several steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.arrays import start_of_sum
from ..base.types import show_path
from . import guards
from .leaves import common_length, end_of_sum
from .losses import checked_losses, scale_of, weighted_sum
from .online_step import add_gradients, not_differentiable
from .options import GradOptions, Outcome, Running
from .progress import Progress

# --- windows -------------------------------------------------------------------------------


def windowed_gradient(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence in windows: one reverse mode per window, added up."""
    steps, size = common_length(sequences), int(options.chunk_size or 1)
    weights = dict(enumerate(state for _, state in options.weights))
    scale = scale_of(options.reduction, mask, steps)

    def window(inputs: tuple[Any, ...]) -> Outcome:
        def loss() -> Any:
            total, (losses, aux) = _window_loss(learner, options, inputs)
            return total * scale, (losses, aux)

        differentiated = brainstate.transform.grad(loss, weights, has_aux=True, check_states=False)
        grads, (losses, aux) = differentiated()  # zero for weights that the step does not use
        flags = _window_flags(learner, options, grads, losses) if options.check else None
        return Outcome(tuple(grads[i] for i in weights), losses, aux, flags)

    progress = Progress(-(-steps // size)) if options.progress else None

    def one(total: Any, numbered: Any) -> tuple[Any, Any]:
        number, now = numbered
        found = window(now)
        if progress is not None:
            progress.advance(number, found.losses)
        total = jax.tree.map(add_gradients, total, found.grads)
        return total, (found.losses, found.aux, found.flags)

    if not options.carry_trace:
        learner.write_traces(learner.rule.init(), 0)
    values = tuple(state.value for state in weights.values())
    start = jax.tree.map(start_of_sum, values)
    total, (losses, aux, flags) = in_parts(one, start, (mask, *sequences), size)
    if not options.carry_trace:
        learner.write_traces(learner.rule.init(), 0)
    total = jax.tree.map(lambda v, like: end_of_sum(v, like, 1.0), total, values)
    fixed = not_differentiable((total, losses, aux), (values, sequences, mask))
    total, losses, aux = fixed
    return Outcome(total, losses, aux, flags)


def _window_loss(learner: Running, options: GradOptions, inputs: tuple[Any, ...]) -> Any:
    """The loss of a window, and ``k`` losses with auxiliary data."""
    mask, *sequences = inputs
    size = common_length(tuple(sequences))
    before = learner.calls
    result = options.step_fn(*sequences)
    if learner.calls - before != 1:
        raise ValueError(
            "step_fn must call the learner exactly once per window; it called it "
            f"{learner.calls - before} times"
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


def _window_flags(
    learner: Running, options: GradOptions, grads: Mapping[int, Any], losses: Any
) -> guards.Flags:
    finite = {"the loss": guards.all_finite(losses)}
    paths = {state: path for path, state in learner.param_states.items()}
    for i, (key, state) in enumerate(options.weights):
        name = show_path(paths[state]) if state in paths else str(key)
        finite[f"the gradient of {name}"] = guards.all_finite(grads[i])
    traces = tuple(trace.value for trace in learner.traces)
    return guards.Flags(finite | guards.finite_traces(learner.rule, traces), {})


def in_parts(
    one: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any, size: int
) -> tuple[Any, Any]:
    """Run ``one(carry, (number, part)) -> carry, (per_step, per_step, per_part)`` along parts.

    Parts have ``size`` steps, the last one perhaps fewer. What is per step is joined, what is per
    part stacked.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    full, rest = divmod(steps, size)
    parts = []
    if full:
        blocks = jax.tree.map(lambda v: v[: full * size].reshape(full, size, *v.shape[1:]), inputs)
        start, (a, b, flags) = brainstate.transform.scan(one, start, (jnp.arange(full), blocks))
        parts.append((*jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (a, b)), flags))
    if rest:
        tail = jax.tree.map(lambda v: v[full * size :], inputs)
        start, (a, b, flags) = one(start, (full, tail))
        parts.append((a, b, jax.tree.map(lambda v: v[None], flags)))
    return start, jax.tree.map(lambda *v: jnp.concatenate(v), *parts)
