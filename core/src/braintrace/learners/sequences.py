# SPDX-License-Identifier: Apache-2.0
"""Whole sequences: the methods of a learner in front of the drivers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.types import State
from ..compiler.requirements import check_states
from ..drivers import guards, undo
from ..drivers.donating import is_lost
from ..drivers.gradients import gradient
from ..drivers.loops import Progress, in_parts
from ..drivers.options import (
    SKIP,
    GradOptions,
    check_count,
    checked_mask,
    common_length,
    require_callable,
    shown_losses,
)
from ..drivers.running import Running, let_vary, nothing
from .optimizers import as_optimizer, trained_and_frozen, zeros_of
from .restarts import begin_call, start_traces
from .silence import say_silent

LOSS_OUTPUTS = ("per_step", "masked", "scalar")

#: What is said of a call that stopped when it had begun to write.
LOST = (
    "The call had begun to write over the eligibility traces when it stopped: they start from "
    "zero, and all other states are as before. A call with check=True leaves the traces as "
    "before, too; learner.reset_state(model_states=True) starts all anew."
)


def etrace_grad(
    self: Running,
    *sequences: Any,
    step_fn: Callable[..., Any],
    mask: Any = None,
    weights: Mapping[Any, State] | None = None,
    reduction: str = "mean",
    loss_output: str = "per_step",
    has_aux: bool = False,
    return_value: bool = False,
    chunk_size: int | None = None,
    block_size: int | str = "auto",
    carry_trace: bool = True,
    check: bool | str = False,
    progress: bool = False,
) -> Any:
    """Gradients of the losses of a sequence, in memory that does not grow with its length.

    States, traces and ``running_index`` move on by the length of the sequence.

    Parameters
    ----------
    *sequences
        Pytrees of arrays [T, ...]; slice ``t`` of each is an argument of ``step_fn``.
    step_fn
        Calls the learner once and returns the scalar loss of a step (and auxiliary data). It
        may read hidden states, but not write them.
    mask
        Weights of the losses, [T], or [T, B] for sequences of several lengths: ``step_fn`` then
        returns a loss for each example, [B]. Its axes are always those of the losses, and the
        first is that of steps. States and traces move on at masked steps, too.
    weights
        Parameter states whose gradients are wanted, by any key; default: all of the learner.
        Those of frozen ones are zero. Others must be read by ``step_fn``.
    reduction
        ``'mean'`` (weighted by the mask; zero when all is masked) or ``'sum'`` of the losses is
        what is differentiated.
    loss_output
        Which losses ``return_value`` gives: ``'per_step'``, as ``step_fn`` returned them;
        ``'masked'``, times the mask; ``'scalar'``, what is differentiated.
    has_aux
        ``step_fn`` returns ``(loss, aux)``; the stacked ``aux`` is returned too, [T, ...], or
        an entry per window, [T / k, ...].
    return_value
        Return the losses too.
    chunk_size
        Learn in windows of ``k`` steps, for a learner with ``vjp_method='multi-step'`` (the
        last window may be shorter): ``step_fn`` gets slices [k, ...], wraps the arguments of
        the learner in :class:`braintrace.MultiStepData` and returns ``k`` losses. Another
        ``chunk_size`` is another learning rule. ``None`` and 1: ``step_fn`` gets single steps
        and returns a scalar loss, whatever the learner; for this one, they are windows of one.
    block_size
        Steps that are evaluated together, or ``'auto'``. It never changes the numbers beyond
        round-off (mathematics: Schmidhuber, Neural Computation 4:243, 1992).
    carry_trace
        ``False``: credit does not cross the borders of this call; traces are taken as zero
        before it and are zero after it, and with one block no trace is computed at all.
    check
        Look for NaN and infinity in losses, gradients, states and traces, and (outside of windows)
        for a ``D`` that grows. ``block_size='auto'`` is 1 then, to name the step. A call that
        raises, for this reason or another, leaves all states as they were before. ``'skip'``: in
        place of raising, the steps with such a number (a block of ``block_size``, a window) are
        left out, as if they had not been there: states, traces, gradients and means are those of
        the other steps. A warning says how many. (:meth:`etrace_update` makes no update without
        any step that is left, nor one after which weights are not finite.)
    progress
        Show a progress bar on standard error.

    Returns
    -------
    ``grads``, or ``(grads, losses)``, ``(grads, aux)``, ``(grads, losses, aux)``. ``grads`` has
    the keys of ``weights`` and values like those of the parameters.

    Raises
    ------
    CompilationError
        Before ``compile_graph``.
    TypeError, ValueError
        For sequences of unequal or zero length, an unknown option, weights that neither the learner
        has nor ``step_fn`` reads, or a ``step_fn`` that does not return a scalar loss or does not
        call the learner exactly once.
    FloatingPointError
        With ``check=True``, when a number is not finite; it names the parameter and the step.
        Inside of a ``jit`` of the caller, it comes from the program, as an error of JAX.
    """
    if loss_output not in LOSS_OUTPUTS:
        raise ValueError(f"loss_output must be one of {LOSS_OUTPUTS}, got {loss_output!r}")
    steps = common_length(sequences)
    mask = checked_mask(mask, steps)
    begin_call(self, sequences, lead=2)
    trained, frozen = trained_and_frozen(self, weights)
    options = grad_options(
        self,
        steps,
        step_fn,
        trained,
        reduction=reduction,
        has_aux=has_aux,
        chunk_size=chunk_size,
        block_size=block_size,
        carry_trace=carry_trace,
        check=check,
        progress=progress,
    )

    def like(outcome: Any) -> Any:
        grads = tuple(state.value for _, state in options.weights)
        return outcome._replace(grads=grads, losses=None, aux=None, flags=None)

    run = partial(gradient, self, options)
    driver = _driver(self, (step_fn, "grad", options), run, check, like)

    def finish(outcome: Any) -> Any:
        if check:
            _say(outcome.flags, options, steps)
        if not (carry_trace or options.chunk_size):
            start_traces(self)
        say_silent(self, trained, options.by_key(outcome.grads), steps)
        parts = [{**options.by_key(outcome.grads), **zeros_of(frozen)}]
        if return_value:
            parts.append(shown_losses(outcome.losses, mask, loss_output, reduction))
        if has_aux:
            parts.append(outcome.aux)
        return tuple(parts) if len(parts) > 1 else parts[0]

    return _finished(self, check, driver, (sequences, mask), finish)


def _driver(
    learner: Running,
    key: tuple[Any, ...],
    run: Callable[..., Any],
    check: bool | str,
    like: Callable[[Any], Any] = nothing,
) -> Callable[..., Any]:
    """The driver, which may write over the traces; a guarded call may put them back."""

    def traces() -> Iterable[State]:
        return () if check else learner.traces

    def states() -> Iterable[State]:
        slots = learner.graph.executed.module_info.slots
        return [*learner.param_states.values(), *(slot.state for slot in slots)]

    key = (*key, learner.rule.executor.division)
    return learner._drivers.get(key, run, like, traces, states)


def _finished(
    learner: Running,
    check: bool | str,
    driver: Any,
    args: tuple[Any, ...],
    finish: Callable[[Any], Any] = lambda result: result,
) -> Any:
    """What a driver's result becomes; a guarded call that raises leaves all states as before.

    Another one may have begun to write over the traces, which start anew then.
    """
    if check:
        return undo.unless_it_raises(driver, args, finish)
    try:
        return finish(driver(*args))
    except BaseException as error:
        if is_lost(learner.held_traces):
            start_traces(learner)
            error.add_note(LOST)
        raise


def grad_options(
    learner: Running, steps: int, step_fn: Any, weights: Mapping[Any, State], **how: Any
) -> GradOptions:
    """Options for a sequence of that length, if they fit the learner."""
    options = GradOptions(step_fn, tuple(weights.items()), **how)
    check_states(learner.model, learner.graph.module_info)
    kind, size, block = type(learner).__name__, options.chunk_size, options.block_size
    if learner.vjp_method == "multi-step":
        return replace(options, chunk_size=int(size or 1), block_size=1)
    if size not in (None, 1):
        raise ValueError(
            f"chunk_size={size} needs a learner with vjp_method='multi-step', this {kind} has "
            f"{learner.vjp_method!r}"
        )
    if (block == "auto" and options.check) or learner.rule.in_single_steps:
        block = 1
    if block != "auto":  # which depends on step_fn
        block = min(int(block), steps)
    return replace(options, chunk_size=None, block_size=block)


def etrace_update(
    self: Running,
    *sequences: Any,
    step_fn: Callable[..., Any],
    optimizer: Any,
    update_every: int = 1,
    mask: Any = None,
    weights: Mapping[Any, State] | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
    chunk_size: int | None = None,
    block_size: int | str = "auto",
    check: bool | str = False,
    progress: bool = False,
) -> Any:
    """Online learning: the weights change during the sequence, every ``update_every`` steps.

    Each update follows the gradient of the steps since the last one, with the credit for
    earlier ones that is in the traces. (Traces made with other weights are kept as they are, as
    in every online rule.)

    Parameters
    ----------
    *sequences, step_fn, mask, weights, has_aux, chunk_size, block_size, check, progress
        See :meth:`etrace_grad`.
    optimizer
        An ``optax.GradientTransformation`` or ``optax.MultiSteps``, whose state the learner keeps
        (see :meth:`optimizer`), or an object with a method ``update(grads)`` that holds the weights
        itself, such as an optimizer of ``braintools`` with registered weights. Gradients come
        with the keys of ``weights``. Whatever it does, frozen parameters stay as they are.
    update_every
        Number of steps between updates; the last one may come after fewer.
    reduction
        ``'mean'`` or ``'sum'`` over the losses of an update.

    Returns
    -------
    The losses of every step, as ``step_fn`` returned them, or ``(losses, aux)``.

    Raises
    ------
    CompilationError, TypeError, ValueError, FloatingPointError
        As for :meth:`etrace_grad`, and for an optimizer that is none.
    """
    steps = common_length(sequences)
    mask = checked_mask(mask, steps)
    begin_call(self, sequences, lead=2)
    every = min(check_count("update_every", update_every), steps)
    trained, _ = trained_and_frozen(self, weights)
    options = grad_options(
        self,
        every,
        step_fn,
        trained,
        reduction=reduction,
        has_aux=has_aux,
        chunk_size=chunk_size,
        block_size=block_size,
        check=check,
    )
    if check == SKIP and versions.types_vary():
        raise NotSupportedError(
            "check='skip' inside of jax.shard_map would make an update on some devices and none on "
            "others; take check=True, or learner.shard in place of jax.shard_map"
        )
    update = as_optimizer(self, optimizer, weights)
    bar = Progress(-(-steps // every) if progress else 0)

    def run(sequences: Any, mask: Any) -> Any:
        def one(carry: None, numbered: Any) -> tuple[None, Any]:
            number, (mask, *now) = numbered
            found = _updated(self, options, update, tuple(now), mask)
            bar.advance(number, found.losses)
            return carry, (found.losses, (found.aux, found.flags), None)

        let_vary(self, (sequences, mask))
        with self.traces_in_parts() if steps > every else nullcontext():
            _, (losses, (aux, flags), _) = in_parts(one, None, (mask, *sequences), every)
        return losses, aux, flags

    def finish(result: Any) -> Any:
        losses, aux, flags = result
        if check:
            _say(flags, options, steps, every)
        return (losses, aux) if has_aux else losses

    apart = steps > every and not check and self.may_hold_apart((sequences, mask))
    key = (step_fn, "update", options, every, update, bar, apart)
    driver = _driver(self, key, run, check)

    def in_parts_between(*args: Any) -> Any:
        with self.traces_stay_in_parts():
            return driver(*args)

    called = in_parts_between if apart else driver
    return _finished(self, check, called, (sequences, mask), finish)


def _updated(learner: Running, options: GradOptions, update: Any, now: Any, mask: Any) -> Any:
    """The gradient of some steps, after which the weights are changed."""
    found = gradient(learner, options, now, mask)
    names = options.names(learner.param_states).items()

    def move() -> list[tuple[str, Any]]:
        update(options.by_key(found.grads))
        return [(f"{name} after its update", state.value) for state, name in names]

    def useless(after: list[tuple[str, Any]]) -> jax.Array:
        finite = guards.Flags(guards.finite_of(after), {})
        return guards.failed(found.flags).all() | guards.failed(finite)

    after, _ = undo.unless(move, useless) if options.check == SKIP else (move(), None)
    flags = guards.and_at_end(found.flags, after) if options.check else None
    return found._replace(flags=flags)


def etrace_evolve(
    self: Running,
    *sequences: Any,
    step_fn: Callable[..., Any] | None = None,
    return_outputs: bool = False,
    progress: bool = False,
) -> Any:
    """Let states and traces move on over a sequence, without gradients.

    Parameters
    ----------
    *sequences
        Pytrees of arrays [T, ...]; slice ``t`` of each is an argument of ``step_fn``.
    step_fn
        Calls the learner once per step; default: the learner itself.
    return_outputs
        Return what ``step_fn`` returned, stacked.
    progress
        Show a progress bar on standard error.

    Raises
    ------
    CompilationError, ValueError
        As for :meth:`etrace_grad`.
    """
    steps = common_length(sequences)
    begin_call(self, sequences, lead=2)
    run: Any = self if step_fn is None else step_fn
    require_callable(run)
    bar = Progress(steps if progress else 0)

    def evolve(sequences: tuple[Any, ...]) -> Any:
        def body(number: Any, *inputs: Any) -> Any:
            out = run(*inputs)
            bar.advance(number, self.running_index.value)
            return out if return_outputs else None

        let_vary(self, sequences)
        return brainstate.transform.for_loop(body, jnp.arange(steps), *sequences)

    key = (run, "evolve", return_outputs, steps, bar)
    driver = _driver(self, key, evolve, False)
    return _finished(self, False, driver, (sequences,))


def _say(flags: Any, options: GradOptions, steps: int, every: int | None = None) -> None:
    """What the flags of a checked call mean, at once or when the program runs."""
    size = options.chunk_size or int(options.block_size)
    say = partial(
        guards.report,
        block_size=size,
        steps=steps,
        every=every or steps,
        skip=options.check == SKIP,
    )
    if any(versions.is_traced(v) for v in jax.tree.leaves(flags)):
        jax.debug.callback(say, flags)
    else:
        say(flags)
