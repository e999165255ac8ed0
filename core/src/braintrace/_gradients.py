# SPDX-License-Identifier: Apache-2.0
"""Gradients of a sequence, in blocks of single steps or in windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from . import _guards
from ._block_size import auto_block_size
from ._checks import check_states, require_callable
from ._compile import StateKind, show_path
from ._losses import checked_losses, masked_step, scale_of, weighted_sum
from ._online import add_gradients, not_differentiable
from ._progress import Progress
from ._sequence import (
    BlockRunner,
    Extras,
    common_length,
    end_of_sum,
    flat_states,
    start_of_sum,
    sweep,
    trace_step,
    write_states,
)
from ._stepping import SteppingLearner

State = brainstate.State[Any]


@dataclass(frozen=True)
class GradOptions:
    """What a gradient of a sequence is asked for; see ``etrace_grad``.

    Options of two functions may be equal.
    """

    step_fn: Callable[..., Any] = field(compare=False)
    weights: tuple[tuple[Any, State], ...]
    reduction: str = "mean"
    has_aux: bool = False
    chunk_size: int | None = None
    block_size: int | str = "auto"
    carry_trace: bool = True
    check: bool = False
    progress: bool = False

    def by_key(self, grads: Sequence[Any]) -> dict[Any, Any]:
        """Gradients by the keys of the weights."""
        return {key: grad for (key, _), grad in zip(self.weights, grads, strict=True)}

    def __post_init__(self) -> None:
        require_callable(self.step_fn)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")
        if self.block_size != "auto":
            check_count("block_size", self.block_size, "'auto' or ")
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size, "None or ")


class Outcome(NamedTuple):
    """Gradients in the order of the weights, and what the steps gave, stacked."""

    grads: tuple[Any, ...]
    losses: Any
    aux: Any
    flags: Any = None


def check_count(name: str, value: Any, others: str = "") -> int:
    """``value``, if it is a positive integer; raises ``ValueError``."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or int(value) < 1:
        raise ValueError(f"{name} must be {others}a positive integer, got {value!r}")
    return int(value)


def gradient(learner: SteppingLearner, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence, inside a compiled program."""
    if options.chunk_size is not None:
        return _windowed(learner, options, sequences, mask)
    return _blocked(learner, options, sequences, mask)


def _blocked(learner: SteppingLearner, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    rule, steps = learner.rule, common_length(sequences)
    check_states(learner.model, learner.graph.module_info)
    weights = [state for _, state in options.weights]
    inputs = (mask, *sequences)
    first = jax.tree.map(lambda v: v[0], inputs)
    step_fn = masked_step(options.step_fn, options.has_aux)
    traced = trace_step(learner.executor, step_fn, learner._attach, first, weights)
    runner = BlockRunner(rule, traced, tuple(weights))
    size = options.block_size
    if isinstance(size, str):
        recorded = traced.direct.bytes_per_step
        size = auto_block_size(rule, steps, options.carry_trace, recorded)
    params = {path: state.value for path, state in learner._states_of(StateKind.PARAM).items()}
    names = {i: name for name, i in _direct_names(learner, runner).items()}
    extras = Extras(
        flags=partial(_guards.flags_of, rule) if options.check else None,
        names=names,
        progress=options.progress,
    )
    result = sweep(
        runner,
        flat_states(traced.states),
        tuple(t.value for t in learner.traces) if options.carry_trace else None,
        inputs,
        learner.executor.operand_values(params),
        size,
        keep_trace=options.carry_trace or options.check,
        scale=scale_of(options.reduction, mask, steps),
        extras=extras,
    )
    by_path = learner.executor.param_gradients(params, result.operands)
    grads = tuple(_total(learner, w, traced, result.direct, by_path) for w in weights)
    parameters = list(learner._states_of(StateKind.PARAM).values())
    write_states(traced.states, result.leaves, skip=[*parameters, *weights])
    kept = options.carry_trace and result.traces is not None
    learner._write_traces(result.traces if kept else rule.init(), steps)
    losses, aux = result.aux
    fixed = not_differentiable((grads, losses, aux), (params, sequences, mask))
    grads, losses, aux = fixed
    return Outcome(grads, losses, aux, result.flags)


def _direct_names(learner: SteppingLearner, runner: BlockRunner) -> dict[str, int]:
    """Leaves of the parameters that have direct gradients, by their path."""
    paths = {state: path for path, state in learner.param_states.items()}
    return {
        _leaf_name(paths.get(state), state, k): i
        for state in runner.targets
        for k, i in enumerate(runner.step.leaves_of(state) or ())
        if i in runner.step.live
    }


def _total(
    learner: SteppingLearner,
    state: State,
    traced: Any,
    direct: Mapping[int, Any],
    by_path: Mapping[Any, Any],
) -> Any:
    """Direct plus traced gradient of one parameter, zero where neither exists."""
    leaves, treedef = jax.tree.flatten(state.value)
    total = [jnp.zeros_like(leaf) for leaf in leaves]
    for k, i in enumerate(traced.leaves_of(state) or ()):
        if i in direct:
            total[k] = add_gradients(total[k], direct[i])
    for path, other in learner._states_of(StateKind.PARAM).items():
        if other is state and path in by_path:
            found = jax.tree.leaves(by_path[path])
            total = [add_gradients(a, b) for a, b in zip(total, found, strict=True)]
    return jax.tree.unflatten(treedef, total)


# --- windows -------------------------------------------------------------------------------


def _windowed(learner: SteppingLearner, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
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
        learner._write_traces(learner.rule.init(), 0)
    values = tuple(state.value for state in weights.values())
    start = jax.tree.map(start_of_sum, values)
    total, (losses, aux, flags) = in_parts(one, start, (mask, *sequences), size)
    if not options.carry_trace:
        learner._write_traces(learner.rule.init(), 0)
    total = jax.tree.map(lambda v, like: end_of_sum(v, like, 1.0), total, values)
    fixed = not_differentiable((total, losses, aux), (values, sequences, mask))
    total, losses, aux = fixed
    return Outcome(total, losses, aux, flags)


def _window_loss(learner: SteppingLearner, options: GradOptions, inputs: tuple[Any, ...]) -> Any:
    """The loss of a window, and ``k`` losses with auxiliary data."""
    mask, *sequences = inputs
    size = common_length(tuple(sequences))
    before = learner._calls
    result = options.step_fn(*sequences)
    if learner._calls - before != 1:
        raise ValueError(
            "step_fn must call the learner exactly once per window; it called it "
            f"{learner._calls - before} times"
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
    learner: SteppingLearner, options: GradOptions, grads: Mapping[int, Any], losses: Any
) -> _guards.Flags:
    finite = {"the loss": _guards.all_finite(losses)}
    paths = {state: path for path, state in learner.param_states.items()}
    for i, (key, state) in enumerate(options.weights):
        name = show_path(paths[state]) if state in paths else str(key)
        finite[f"the gradient of {name}"] = _guards.all_finite(grads[i])
    traces = tuple(trace.value for trace in learner.traces)
    return _guards.Flags(finite | _guards.finite_traces(learner.rule, traces), {})


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
