# SPDX-License-Identifier: Apache-2.0
"""The gradient of a sequence that is learned in windows of one or several steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.precision import start_of_sum
from ..base.types import how_many, show_path
from ..compiler.module_info import StateKind
from . import guards, undo
from .call_arguments import number_of_steps
from .loops import Progress, in_parts
from .options import (
    SKIP,
    GradOptions,
    Outcome,
    checked_losses,
    common_length,
    masked_step,
    scale_of,
    weighted_sum,
)
from .running import Running, clear_filters
from .steps import add_gradients, end_of_sum
from .traced import check_reached


def in_windows(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence in windows: one reverse mode per window, added up.

    Windows of one step have no axis of steps. Auxiliary data is stacked by window.
    """
    steps, size = common_length(sequences), int(options.chunk_size or 1)
    weights = dict(enumerate(state for _, state in options.weights))
    scale = scale_of(options.reduction, mask, steps)
    names = options.names(learner.param_states)
    progress = Progress(-(-steps // size) if options.progress else 0)
    window = _loss_of_step if size == 1 else _loss_of_window
    if any(state not in learner.param_states.values() for state in weights.values()):
        traced = brainstate.transform.StatefulFunction(partial(window, learner, options))
        first = jax.tree.map(lambda v: v[:size], (mask, *sequences))
        traced.make_jaxpr(first)
        check_reached(learner, [*weights.values()], traced.get_state_trace(first).states)

    def one(total: Any, numbered: Any) -> tuple[Any, Any]:
        number, now = numbered

        def loss() -> Any:
            total, found = window(learner, options, now)
            return total * scale, found

        differentiated = brainstate.transform.grad(loss, weights, has_aux=True, check_states=False)

        def moved() -> Any:
            with jax.disable_jit(False):  # without jit, brainstate's gradient refuses to write
                grads, (losses, aux) = differentiated()  # zero for weights that are not used
            return grads, losses, aux, flags_of(losses, grads)

        if options.check == SKIP:
            (grads, losses, aux, flags), bad = undo.unless(moved, lambda new: guards.failed(new[3]))
            zeros = jax.tree.map(jnp.zeros_like, grads)
            grads = undo.where_finite(bad, zeros, grads)
        else:
            grads, losses, aux, flags = moved()
        progress.advance(number, losses)
        total = jax.tree.map(add_gradients, total, tuple(grads[i] for i in weights))
        return total, ((losses[None] if size == 1 else losses), None, (aux, flags))

    def flags_of(losses: Any, grads: Mapping[int, Any]) -> Any:
        """What is shown after a window, if it is checked."""
        flags = None
        if options.check:
            named = [(f"the gradient of {names[state]}", grads[i]) for i, state in weights.items()]
            flags = guards.flags_of(learner.rule, losses, named, learner.read_traces())
            hidden = learner.states_of(StateKind.HIDDEN).items()
            after = [(f"the state {show_path(path)}", state.value) for path, state in hidden]
            flags = guards.and_at_end(flags, after)
        return flags

    before = learner.running_index.value
    if not options.carry_trace:
        learner.write_traces(learner.rule.init(), 0)
        clear_filters(learner)
        learner.running_index.value = jnp.zeros_like(before)
    values = tuple(state.value for state in weights.values())
    start = jax.tree.map(start_of_sum, values)
    total, (losses, _, seen) = in_parts(one, start, (mask, *sequences), size)
    if not options.carry_trace:
        learner.write_traces(learner.rule.init(), 0)
        clear_filters(learner)
        learner.running_index.value = before + steps
    return Outcome(jax.tree.map(end_of_sum, total, values), losses, *seen)


def _loss_of_step(learner: Running, options: GradOptions, inputs: tuple[Any, ...]) -> Any:
    """The weighted loss of a window of one step, and the loss with auxiliary data."""
    now = jax.tree.map(lambda v: v[0], inputs)
    with _counted(learner, 1):
        return masked_step(options.step_fn, options.has_aux)(*now)


def _loss_of_window(learner: Running, options: GradOptions, inputs: tuple[Any, ...]) -> Any:
    """The weighted loss of a window, and ``k`` losses with auxiliary data."""
    mask, *sequences = inputs
    size = common_length(tuple(sequences))
    with _counted(learner, size):
        result = options.step_fn(*sequences)
    shape = (size,) if mask is None else mask.shape
    when = "with chunk_size and so a loss for each step of a window, "
    losses, aux = checked_losses(result, options.has_aux, shape, when)
    return weighted_sum(losses, mask), (losses, aux)


@contextmanager
def _counted(learner: Running, size: int) -> Iterator[None]:
    """The learner is called once meanwhile, with all steps of the window."""
    stepper, calls = learner.call_stepper, 0
    window = "step" if size == 1 else f"window of {size} steps"

    def counted(learner: Running, args: Any, given: Any) -> Any:
        nonlocal calls
        calls += 1
        steps = number_of_steps(args)
        if steps not in (size, None):
            raise ValueError(
                f"step_fn passes a MultiStepData of {how_many(steps, 'step')} for a {window}; "
                "chunk_size says how many steps step_fn gets and passes on (1, or none: single "
                "steps, as they are)"
            )
        out = stepper(learner, args, given)  # one step of another shape is told there
        if steps is None and size > 1:
            raise ValueError(
                f"step_fn passes one step for a {window}: wrap all of them in "
                "braintrace.MultiStepData"
            )
        return out

    with learner.stepping_by(counted):
        yield
    if calls != 1:
        raise ValueError(
            f"step_fn must call the learner exactly once per {window.split()[0]}; it called it "
            f"{calls} times"
        )
