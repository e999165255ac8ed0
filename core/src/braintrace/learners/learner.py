# SPDX-License-Identifier: Apache-2.0
"""Learners: a model with traces, and the drivers that run whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..algorithms.rule import LearningRule
from ..base import versions
from ..base.types import State
from ..compiler.requirements import check_states
from ..drivers import guards
from ..drivers.compiled import Drivers
from ..drivers.gradients import gradient
from ..drivers.in_windows import in_parts
from ..drivers.leaves import common_length
from ..drivers.losses import checked_mask, shown_losses
from ..drivers.options import GradOptions, check_count, checked_weights, require_callable
from ..drivers.progress import Progress
from ..executor.graph_executor import ETraceGraphExecutor
from ..files.save import restore_learner, save_learner
from .optimizers import OptaxOptimizer, as_optimizer, is_transformation
from .stepping import SteppingLearner

LOSS_OUTPUTS = ("per_step", "masked", "scalar")


class ETraceAlgorithm(SteppingLearner):
    """Base of the learners: a model with eligibility traces.

    A learner is called like the model it wraps. Differentiating a loss of its result with
    ``brainstate.transform.grad`` with respect to ``learner.param_states`` gives online gradients;
    :meth:`etrace_grad` gives those of a whole sequence, much faster. What runs a sequence is
    compiled once, works under ``jit`` and ``vmap`` too, and takes memory that does not grow with
    the length of the sequence, besides that of the sequence itself and of what is returned.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    **options
        Options of :func:`braintrace.compile_etrace_graph`.

    Notes
    -----
    A subclass says which learning rule it is by :meth:`make_rule`.

    Examples
    --------
    Every learner is one:

    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> learner = braintrace.compile(braintrace.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    >>> isinstance(learner, braintrace.ETraceAlgorithm)
    True
    >>> grads = brainstate.transform.grad(lambda: learner(x).sum(), learner.param_states)()
    >>> grads[("Wz", "weight")]["weight"].shape
    (7, 4)
    """

    def __init__(self, model: brainstate.nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self._drivers = Drivers()
        self._optimizers: list[OptaxOptimizer] = []

    def _adopt(self, executor: ETraceGraphExecutor) -> LearningRule:
        self._drivers = Drivers()
        return super()._adopt(executor)

    # --- gradients -----------------------------------------------------------------------------

    def etrace_grad(
        self,
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
        check: bool = False,
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
            returns a loss for each example, [B]. States and traces move on at masked steps, too.
        weights
            Parameter states whose gradients are wanted, by any key; default: all of the learner.
        reduction
            ``'mean'`` (weighted by the mask; zero when all is masked) or ``'sum'`` of the losses is
            what is differentiated.
        loss_output
            Which losses ``return_value`` gives: ``'per_step'``, as ``step_fn`` returned them;
            ``'masked'``, times the mask; ``'scalar'``, what is differentiated.
        has_aux
            ``step_fn`` returns ``(loss, aux)``; the stacked ``aux`` is returned too.
        return_value
            Return the losses too.
        chunk_size
            Learn in windows of ``k`` steps, for a learner with ``vjp_method='multi-step'`` (the
            last window may be shorter): ``step_fn`` gets slices [k, ...], wraps the arguments of
            the learner in :class:`braintrace.MultiStepData` and returns ``k`` losses. Another
            ``chunk_size`` is another learning rule. For other learners, 1 is ``None``.
        block_size
            Steps that are evaluated together, or ``'auto'``. It never changes the numbers beyond
            round-off (mathematics: Schmidhuber, Neural Computation 4:243, 1992).
        carry_trace
            ``False``: credit does not cross the borders of this call; traces are taken as zero
            before it and are zero after it, and with one block no trace is computed at all.
        check
            Look for NaN and infinity in losses, gradients and traces, and (outside of windows) for
            a ``D`` that grows. ``block_size='auto'`` is 1 then, to name the step.
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
            For sequences of unequal or zero length, an unknown option, or a ``step_fn`` that does
            not return a scalar loss or does not call the learner exactly once.
        FloatingPointError
            With ``check=True``, when a number is not finite; it names the parameter and the step.
        """
        if loss_output not in LOSS_OUTPUTS:
            raise ValueError(f"loss_output must be one of {LOSS_OUTPUTS}, got {loss_output!r}")
        steps = common_length(sequences)
        mask = checked_mask(mask, steps)
        options = GradOptions(
            step_fn,
            self._chosen(weights),
            reduction,
            has_aux,
            chunk_size,
            block_size,
            carry_trace,
            check,
            progress,
        )
        options = self._prepared(options, steps)
        driver = self._drivers.get((step_fn, "grad", options), partial(gradient, self, options))
        outcome = driver(sequences, mask)
        if check:
            report(outcome.flags, options, steps)
        losses = shown_losses(outcome.losses, mask, loss_output, reduction)
        grads = options.by_key(outcome.grads)
        parts = (grads, *([losses] if return_value else []))
        parts = (*parts, *([outcome.aux] if has_aux else []))
        return parts if len(parts) > 1 else grads

    def _chosen(self, weights: Mapping[Any, State] | None) -> tuple[tuple[Any, State], ...]:
        chosen = self.param_states if weights is None else checked_weights(weights)
        return tuple(chosen.items())

    def _prepared(self, options: GradOptions, steps: int) -> GradOptions:
        """Options for a sequence of that length, if they fit the learner."""
        check_states(self.model, self.graph.module_info)
        if options.chunk_size == 1 and self.vjp_method == "single-step":
            options = replace(options, chunk_size=None)
        self._check_windows(options.chunk_size)
        if options.chunk_size is not None:
            return replace(options, chunk_size=min(int(options.chunk_size), steps), block_size=1)
        if options.block_size == "auto":  # without a check, it depends on step_fn
            return replace(options, block_size=1) if options.check else options
        return replace(options, block_size=min(int(options.block_size), steps))

    def _check_windows(self, chunk_size: int | None) -> None:
        if chunk_size is not None and self.vjp_method != "multi-step":
            raise ValueError(
                f"chunk_size={chunk_size} needs a learner with vjp_method='multi-step', this "
                f"{type(self).__name__} has {self.vjp_method!r}"
            )
        if chunk_size is None and self.vjp_method == "multi-step":
            raise ValueError(
                f"this {type(self).__name__} learns in windows (vjp_method='multi-step'): pass "
                "their length as chunk_size"
            )

    # --- weights that change on the way --------------------------------------------------------

    def etrace_update(
        self,
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
        check: bool = False,
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
            An ``optax.GradientTransformation``, whose state the learner keeps (see
            :meth:`optimizer`), or an object with a method ``update(grads)`` that holds the weights
            itself, such as an optimizer of ``braintools`` with registered weights. Gradients come
            with the keys of ``weights``.
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
        every = min(check_count("update_every", update_every), steps)
        options = GradOptions(
            step_fn,
            self._chosen(weights),
            reduction,
            has_aux,
            chunk_size,
            block_size,
            check=check,
            progress=progress,
        )
        options = self._prepared(options, every)
        update = as_optimizer(self.optimizer, optimizer, dict(options.weights))
        key = (step_fn, "update", options, every, update)
        driver = self._drivers.get(key, partial(self._updated, options, every, update))
        losses, aux, flags = driver(sequences, mask)
        if check:
            report(flags, options, steps, every)
        return (losses, aux) if has_aux else losses

    def optimizer(
        self, transformation: Any, weights: Mapping[Any, State] | None = None
    ) -> OptaxOptimizer:
        """The optimizer with which an optax transformation changes the learner's weights.

        It is made at the first call, which must not be inside ``jit``, and holds the state of the
        transformation in a brainstate state.

        Parameters
        ----------
        transformation
            An ``optax.GradientTransformation``.
        weights
            The weights, by any key; default: all of the learner.
        """
        chosen = dict(self._chosen(weights))
        for known in self._optimizers:
            if known.fits(transformation, chosen):
                return known
        if sum(known.weights.keys() == chosen.keys() for known in self._optimizers) == 3:
            versions.warn(
                "optimizer is a new optax transformation at each call, whose state starts anew; "
                "make it once, outside of the loop"
            )
        self._optimizers.append(OptaxOptimizer(transformation, chosen))
        return self._optimizers[-1]

    def _updated(
        self,
        options: GradOptions,
        every: int,
        update: Callable[[Any], None],
        sequences: Any,
        mask: Any,
    ) -> Any:
        progress = Progress(-(-common_length(sequences) // every)) if options.progress else None
        inner = replace(options, progress=False)

        def one(carry: None, numbered: Any) -> tuple[None, Any]:
            number, (mask, *now) = numbered
            found = gradient(self, inner, tuple(now), mask)
            update(inner.by_key(found.grads))
            if progress is not None:
                progress.advance(number, found.losses)
            return carry, (found.losses, (found.aux, found.flags), None)

        _, (losses, (aux, flags), _) = in_parts(one, None, (mask, *sequences), every)
        return losses, aux, flags

    # --- moving on -----------------------------------------------------------------------------

    def etrace_evolve(
        self,
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
        self.graph  # noqa: B018  raises before compile_graph
        run = self if step_fn is None else step_fn
        require_callable(run)
        shown = Progress(steps) if progress else None

        def evolve(sequences: tuple[Any, ...]) -> Any:
            def body(number: Any, *inputs: Any) -> Any:
                out = run(*inputs)
                if shown is not None:
                    shown.advance(number, self.running_index.value)
                return out if return_outputs else None

            return brainstate.transform.for_loop(body, jnp.arange(steps), *sequences)

        return self._drivers.get((run, "evolve", return_outputs, steps, progress), evolve)(
            sequences
        )

    # --- stopping and going on ---------------------------------------------------------------

    def save(self, path: Any, optimizer: Any = None) -> None:
        """Write parameters, states, traces and the optimizer to a file.

        The file before is there until the new one is complete; see
        :func:`braintrace.files.save.save_learner`.

        Parameters
        ----------
        path
            The file.
        optimizer
            What was passed to :meth:`etrace_update`, or any object with brainstate states. What
            optax transformations have done to the learner's weights is saved in any case.

        Raises
        ------
        CompilationError
            Before ``compile_graph``.
        OSError
            When the file cannot be written.
        """
        save_learner(self, path, self._with_states(optimizer))

    def restore(self, path: Any, optimizer: Any = None) -> None:
        """Go on from a file of :meth:`save`, bit for bit.

        Parameters
        ----------
        path
            The file.
        optimizer
            As it was when the file was written. If an optax transformation changed some of the
            weights only, call :meth:`optimizer` with these first.

        Raises
        ------
        ValueError
            When the file is not of such a learner; all differences are listed and nothing is
            changed.
        """
        restore_learner(self, path, self._with_states(optimizer))

    def _with_states(self, optimizer: Any) -> Any:
        """An optimizer that holds its states: the learner's own, for an optax transformation."""
        if not is_transformation(optimizer):
            return optimizer
        known = [one for one in self._optimizers if one.transformation is optimizer]
        return known if len(known) > 1 else (known or [self.optimizer(optimizer)])[0]


def report(flags: Any, options: GradOptions, steps: int, every: int | None = None) -> None:
    """Say what the flags of a checked call mean, at once or when the program runs."""
    size = options.chunk_size or int(options.block_size)
    say = partial(guards.report, block_size=size, steps=steps, every=every or steps)
    if any(versions.is_traced(v) for v in jax.tree.leaves(flags)):
        jax.debug.callback(say, flags)
    else:
        say(flags)
