# SPDX-License-Identifier: Apache-2.0
"""Learners: a model with traces, and the drivers that run whole sequences."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from . import _guards, _jax
from ._algorithm import LearningRule
from ._checks import check_states, checked_weights, require_callable
from ._compile import StateKind, show_path
from ._execute import ETraceGraphExecutor
from ._losses import checked_mask, masked_step, scale_of, shown_losses, weighted_sum
from ._online import add_gradients, not_differentiable
from ._optimizers import OptaxOptimizer, as_optimizer
from ._progress import Progress
from ._sequence import (
    BlockRunner,
    Extras,
    auto_block_size,
    common_length,
    flat_states,
    sweep,
    trace_step,
    write_states,
)
from ._stepping import EligibilityTrace, SteppingLearner

State = brainstate.State[Any]
CACHED_DRIVERS = 16
LOSS_OUTPUTS = ("per_step", "masked", "scalar")


@dataclass(frozen=True)
class GradOptions:
    """What a gradient of a sequence is asked for; see ``etrace_grad``."""

    step_fn: Callable[..., Any]
    weights: tuple[tuple[Any, State], ...]
    reduction: str = "mean"
    has_aux: bool = False
    masked: bool = False
    chunk_size: int | None = None
    block_size: int | str = "auto"
    carry_trace: bool = True
    check: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        require_callable(self.step_fn)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")
        if self.block_size != "auto":
            check_count("block_size", self.block_size, "'auto' or ")
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size, "None or ")


class Outcome(NamedTuple):
    """Gradients by key of the weights, and what the steps gave, stacked."""

    grads: Any
    losses: Any
    aux: Any
    flags: Any = None


def check_count(name: str, value: Any, others: str = "") -> int:
    """``value``, if it is a positive integer; raises ``ValueError``."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or int(value) < 1:
        raise ValueError(f"{name} must be {others}a positive integer, got {value!r}")
    return int(value)


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
    """

    def __init__(self, model: brainstate.nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        self._drivers: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
        self._optimizers: list[OptaxOptimizer] = []

    def _adopt(self, executor: ETraceGraphExecutor) -> LearningRule:
        self._drivers = OrderedDict()
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
            Calls the learner once and returns the scalar loss of a step (and auxiliary data).
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
            ``chunk_size`` is another learning rule.
        block_size
            Steps that are evaluated together, or ``'auto'``. It never changes the numbers beyond
            round-off (mathematics: Schmidhuber, Neural Computation 4:243, 1992).
        carry_trace
            ``False``: credit does not cross the borders of this call; traces are taken as zero
            before it and are zero after it, and with one block no trace is computed at all.
        check
            Look for NaN and infinity in losses, gradients and traces, and for a ``D`` that grows.
            ``block_size='auto'`` is 1 then, to name the step.
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
            mask is not None,
            chunk_size,
            block_size,
            carry_trace,
            check,
            progress,
        )
        options = self._prepared(options, steps)
        driver = self._driver((step_fn, "grad", options), partial(self._gradient, options))
        outcome = driver(sequences, mask)
        if check:
            report(outcome.flags, options, steps)
        losses = shown_losses(outcome.losses, mask, loss_output, reduction)
        parts = (outcome.grads, *([losses] if return_value else []))
        parts = (*parts, *([outcome.aux] if has_aux else []))
        return parts if len(parts) > 1 else outcome.grads

    def _chosen(self, weights: Mapping[Any, State] | None) -> tuple[tuple[Any, State], ...]:
        chosen = self.param_states if weights is None else checked_weights(weights)
        return tuple(chosen.items())

    def _prepared(self, options: GradOptions, steps: int) -> GradOptions:
        """Options with numbers in place of ``'auto'``, if they fit the learner."""
        check_states(self.model, self.graph.module_info)
        self._check_windows(options.chunk_size)
        if options.chunk_size is not None:
            return replace(options, chunk_size=min(int(options.chunk_size), steps), block_size=1)
        if options.block_size == "auto":
            size = 1 if options.check else auto_block_size(self.rule, steps)
        else:
            size = min(int(options.block_size), steps)
        return replace(options, block_size=size)

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

    def _gradient(self, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
        """Gradients of a sequence, inside a compiled program."""
        if options.chunk_size is not None:
            return self._windowed(options, sequences, mask)
        return self._blocked(options, sequences, mask)

    def _blocked(self, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
        rule, steps = self.rule, common_length(sequences)
        check_states(self.model, self.graph.module_info)
        weights = dict(options.weights)
        inputs = (mask, *sequences)
        first = jax.tree.map(lambda v: v[0], inputs)
        step_fn = masked_step(options.step_fn, options.has_aux, options.masked)
        traced = trace_step(self.executor, step_fn, self._attach, first, has_aux=True)
        runner = BlockRunner(rule, traced, tuple(weights.values()))
        params = {path: state.value for path, state in self._states_of(StateKind.PARAM).items()}
        names = {i: name for name, i in self._direct_names(runner).items()}
        extras = Extras(
            flags=partial(_guards.flags_of, rule) if options.check else None,
            names=names,
            progress=options.progress,
        )
        result = sweep(
            runner,
            flat_states(traced.states),
            tuple(t.value for t in self.traces) if options.carry_trace else None,
            inputs,
            self.executor.operand_values(params),
            int(options.block_size),
            keep_trace=options.carry_trace or options.check,
            scale=scale_of(options.reduction, mask, steps),
            extras=extras,
        )
        by_path = self.executor.param_gradients(params, result.operands)
        grads = {
            key: self._total(state, traced, result.direct, by_path)
            for key, state in weights.items()
        }
        parameters = list(self._states_of(StateKind.PARAM).values())
        write_states(traced.states, result.leaves, skip=[*parameters, *weights.values()])
        kept = options.carry_trace and result.traces is not None
        self._write_traces(result.traces if kept else rule.init(), steps)
        losses, aux = result.aux
        fixed = not_differentiable((grads, losses, aux), (params, sequences, mask))
        grads, losses, aux = fixed
        return Outcome(grads, losses, aux, result.flags)

    def _direct_names(self, runner: BlockRunner) -> dict[str, int]:
        """Leaves of the parameters that have direct gradients, by their path."""
        paths = {state: path for path, state in self.param_states.items()}
        return {
            _leaf_name(paths.get(state), state, k): i
            for state in runner.targets
            for k, i in enumerate(runner.step.leaves_of(state) or ())
            if i in runner.step.live
        }

    def _total(
        self, state: State, traced: Any, direct: Mapping[int, Any], by_path: Mapping[Any, Any]
    ) -> Any:
        """Direct plus traced gradient of one parameter, zero where neither exists."""
        leaves, treedef = jax.tree.flatten(state.value)
        total = [jnp.zeros_like(leaf) for leaf in leaves]
        for k, i in enumerate(traced.leaves_of(state) or ()):
            if i in direct:
                total[k] = add_gradients(total[k], direct[i])
        for path, other in self._states_of(StateKind.PARAM).items():
            if other is state and path in by_path:
                found = jax.tree.leaves(by_path[path])
                total = [add_gradients(a, b) for a, b in zip(total, found, strict=True)]
        return jax.tree.unflatten(treedef, total)

    # --- windows -------------------------------------------------------------------------------

    def _windowed(self, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
        """Gradients of a sequence in windows: one reverse mode per window, added up."""
        steps, size = common_length(sequences), int(options.chunk_size or 1)
        weights = dict(options.weights)
        scale = scale_of(options.reduction, mask, steps)

        def window(inputs: tuple[Any, ...]) -> Outcome:
            def loss() -> Any:
                total, (losses, aux) = self._window_loss(options, inputs)
                return total * scale, (losses, aux)

            grads, (losses, aux) = brainstate.transform.grad(loss, weights, has_aux=True)()
            flags = self._window_flags(weights, grads, losses) if options.check else None
            return Outcome(grads, losses, aux, flags)

        progress = Progress(-(-steps // size)) if options.progress else None

        def one(total: Any, numbered: Any) -> tuple[Any, Any]:
            number, now = numbered
            found = window(now)
            if progress is not None:
                progress.advance(number, found.losses)
            total = jax.tree.map(add_gradients, total, dict(found.grads))
            return total, (found.losses, found.aux, found.flags)

        start = {key: jax.tree.map(jnp.zeros_like, s.value) for key, s in weights.items()}
        total, (losses, aux, flags) = in_parts(one, start, (mask, *sequences), size)
        if not options.carry_trace:
            self._write_traces(self.rule.init(), 0)
        return Outcome(total, losses, aux, flags)

    def _window_loss(self, options: GradOptions, inputs: tuple[Any, ...]) -> Any:
        """The loss of a window, and ``k`` losses with auxiliary data."""
        mask, *sequences = inputs
        size = common_length(tuple(sequences))
        before = self._calls
        result = options.step_fn(*sequences)
        if self._calls - before != 1:
            raise ValueError(
                "step_fn must call the learner exactly once per window; it called it "
                f"{self._calls - before} times"
            )
        losses, aux = result if options.has_aux else (result, None)
        losses = jnp.asarray(losses)
        expected = (size,) if mask is None else mask.shape
        if losses.shape != expected or not jnp.issubdtype(losses.dtype, jnp.floating):
            raise TypeError(
                f"with chunk_size, step_fn must return floating-point losses of shape {expected}, "
                f"one per step of the window; got shape {losses.shape} and dtype {losses.dtype}"
            )
        return weighted_sum(losses, mask), (losses, aux)

    def _window_flags(
        self, weights: Mapping[Any, State], grads: Mapping[Any, Any], losses: Any
    ) -> _guards.Flags:
        finite = {"the loss": _guards.all_finite(losses)}
        paths = {state: path for path, state in self.param_states.items()}
        for key, state in weights.items():
            name = f"the gradient of {show_path(paths[state])}" if state in paths else str(key)
            finite[name] = _guards.all_finite(grads[key])
        traces = tuple(trace.value for trace in self.traces)
        return _guards.Flags(finite | _guards.finite_traces(self.rule, traces), {})

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
            mask is not None,
            chunk_size,
            block_size,
            check=check,
            progress=progress,
        )
        options = self._prepared(options, every)
        update = as_optimizer(self.optimizer, optimizer, dict(options.weights))
        key = (step_fn, "update", replace(options), every, update)
        driver = self._driver(key, partial(self._updated, options, every, update))
        losses, aux, flags = driver(sequences, mask)
        if check:
            report(flags, options, steps, every)
        return (losses, aux) if has_aux else losses

    def optimizer(
        self, transformation: Any, weights: Mapping[Any, State] | None = None
    ) -> OptaxOptimizer:
        """The optimizer with which an optax transformation changes the learner's weights.

        It is made at the first call and holds the transformation's state, in a brainstate state.

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
            found = self._gradient(inner, tuple(now), mask)
            update(dict(found.grads))
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

        return self._driver((run, "evolve", return_outputs, steps, progress), evolve)(sequences)

    # --- compiled once -------------------------------------------------------------------------

    def _driver(self, key: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled driver for these options, kept for the next call."""
        names = self.graph.module_info.environment
        key = (*key, tuple(str(brainstate.environ.get(name, None)) for name in names))
        if key not in self._drivers:
            self._warn_of_new_functions(*key)
            self._drivers[key] = brainstate.transform.jit(run)
            if len(self._drivers) > CACHED_DRIVERS:
                self._drivers.popitem(last=False)
        self._drivers.move_to_end(key)
        return self._drivers[key]

    def _warn_of_new_functions(self, step_fn: Any, kind: str, *options: Any) -> None:
        """A function written inside a loop is a new one each time, and compiled each time."""
        code = getattr(step_fn, "__code__", None)
        functions = {k[0] for k in self._drivers if k[1] == kind}
        same = [f for f in functions if getattr(f, "__code__", None) is code]
        if code is not None and step_fn not in same and len(same) == 3:
            _jax.warn(
                f"step_fn ({code.co_filename}:{code.co_firstlineno}) is a new function at each "
                "call and is compiled anew each time; define it once, outside of the loop"
            )


def _leaf_name(path: Any, state: State, index: int) -> str:
    """The name of a leaf of a parameter."""
    (place, _) = jax.tree_util.tree_leaves_with_path(state.value)[index]
    name = "a parameter" if path is None else show_path(path)
    return f"{name}{jax.tree_util.keystr(place)}"


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


def report(flags: Any, options: GradOptions, steps: int, every: int | None = None) -> None:
    """Say what the flags of a checked call mean, at once or when the program runs."""
    size = options.chunk_size or int(options.block_size)
    say = partial(_guards.report, block_size=size, steps=steps, every=every or steps)
    if any(_jax.is_traced(v) for v in jax.tree.leaves(flags)):
        jax.debug.callback(say, flags)
    else:
        say(flags)


__all__ = ["ETraceAlgorithm", "EligibilityTrace", "GradOptions"]
