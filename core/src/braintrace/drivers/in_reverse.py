# SPDX-License-Identifier: Apache-2.0
"""The gradient of a sequence for rules that keep the influence on everything that is carried.

A block is run by reverse mode, which gives the gradient of its losses with respect to parameters
and to the states in front of it; what these states owe to the past is in the traces. Then the
traces move on over the recorded steps. Credit passes from step to step through the states of the
model alone, so that blocks change no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import start_of_sum, widened
from ..base.types import Path
from ..compiler.module_info import StateKind
from ..compiler.requirements import check_states
from ..ops.traces.base import added, together
from . import guards, undo
from .block_size import auto_block_size
from .first import is_first
from .loops import Progress, in_parts
from .options import SKIP, GradOptions, Outcome, common_length, masked_step, scale_of
from .running import Running
from .steps import add_scaled, end_of_sum
from .traced import TracedStep, hidden_leaves, trace_step


def in_reverse(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Run a sequence in blocks and a shorter last one."""
    rule: Any = learner.rule
    steps, inputs = common_length(sequences), (mask, *sequences)
    check_states(learner.model, learner.graph.module_info)
    first = jax.tree.map(lambda v: v[0], inputs)
    parts = rule.executor.parts
    targets = [state for _, state in options.weights] if parts > 1 else ()
    step_fn = masked_step(options.step_fn, options.has_aux)
    step = trace_step(learner, step_fn, first, targets, carried=True)
    size = options.block_size
    if isinstance(size, str):
        size = auto_block_size(rule, steps, options.carry_trace)
    progress = Progress(-(-steps // size) if options.progress else 0)
    weights = {i: state for i, (_, state) in enumerate(options.weights)}
    names = options.names(learner.param_states)
    model = {state: path for path, state in learner.states_of(StateKind.PARAM).items()}
    params = {path: state.value for state, path in model.items()}
    values = {i: state.value for i, state in weights.items()}
    states = {
        path: state
        for kind in (StateKind.HIDDEN, StateKind.OTHER)
        for path, state in learner.states_of(kind).items()
    }

    run = partial(_differentiated, step, [*rule.perturbations()], weights, states, parts)

    hidden = hidden_leaves(learner, step)
    scale = scale_of(options.reduction, mask, steps)
    steps_before = learner.running_index.value if options.carry_trace else 0

    def one_block(carry: Any, numbered: Any) -> Any:
        (leaves, traces, total), (number, inputs) = carry, numbered
        found, signal, olds, (end, kept, losses, aux) = run(leaves, inputs)
        last = isinstance(number, int) and number == (steps - 1) // size
        ends = last and not (options.carry_trace or options.check or rule.in_single_steps)
        begins = is_first(number, size, steps_before)
        after = None if ends else rule.after_steps(traces, kept, params, begins)
        by_path = rule.credit(traces, olds, params, begins, after, signal, parts)
        for i, state in weights.items():
            path = model.get(state)
            traced = (by_path[path],) if path in by_path else ()
            found[i] = jax.tree.map(_whole, values[i], found[i], *traced)
        progress.advance(number, losses)
        flags: Any = None
        if options.check:
            named = [(f"the gradient of {names[state]}", found[i]) for i, state in weights.items()]
            flags = guards.flags_of(rule, losses, named, after)
            flags = guards.and_at_end(flags, [(hidden[i], end[i]) for i in hidden])
        new = (end, after, jax.tree.map(partial(add_scaled, scale=scale), total, found))
        if options.check == SKIP:
            before = carry if traces is not None else (leaves, rule.init(), total)
            new = undo.where_finite(guards.failed(flags), before, new)
        return new, (losses, aux, flags)

    traces = learner.read_traces() if options.carry_trace else None
    if traces is None and steps >= 2 * size:
        traces = rule.init()
    start = (step.read(), traces, jax.tree.map(start_of_sum, values))
    end, (_, (losses, aux), flags) = in_parts(one_block, start, inputs, size, jax.lax.scan, least=2)
    leaves, traces, total = end
    grads = jax.tree.map(end_of_sum, total, values)
    step.write(leaves)
    done = (
        guards.kept_steps(flags, size, steps).sum(dtype="int32") if options.check == SKIP else steps
    )
    learner.write_traces(traces if options.carry_trace else None, done)
    return Outcome(tuple(grads[i] for i in weights), losses, aux, flags)


def _differentiated(
    step: TracedStep,
    perturb: Sequence[Any],
    weights: Mapping[int, Any],
    states: Mapping[Path, Any],
    parts: int,
    leaves: Mapping[int, Any],
    inputs: Any,
) -> tuple[Any, ...]:
    """A block: gradients of weights, perturbations and old states; its last leaves and records."""
    own = {i for state in states.values() for i in step.leaves.get(state, ())}
    least = jnp.dtype(jnp.float32)
    smooth = {i for i in own if versions.is_float(leaves[i])}
    wanted = {
        i: widened(leaves[i], least)
        for state in weights.values()
        for i in step.leaves.get(state, ())
        if versions.is_float(leaves[i])
    }

    given = {i: leaf.dtype for i, leaf in leaves.items()}
    narrow = any(widened(leaves[i], least).dtype != given[i] for i in smooth)
    wide = least if narrow else None
    start, steps = leaves, jax.tree.leaves(inputs)[0].shape[0]
    shifts = [
        jnp.zeros((steps, *v.shape), v.dtype) for v in (() if narrow else step.direct.shifts())
    ]
    if narrow:  # so are the sums of signals that go back through the states
        perturb = widened(perturb, least)
        leaves = {**leaves, **widened({i: leaves[i] for i in smooth}, least)}

    def of_block(
        perturb: Any, olds: Mapping[int, Any], wanted: Mapping[int, Any], shifts: Any
    ) -> Any:
        def one(moving: Mapping[int, Any], now: Any) -> Any:
            own = {i: v if narrow else v.astype(given[i]) for i, v in wanted.items()}
            inputs, shifts = now
            changed = {**moving, **own}
            loss, aux, (kept, _), new, of = step.run(perturb, inputs, changed, shifts, wide)
            held = jax.lax.stop_gradient({i: v for i, v in new.items() if i not in smooth})
            if narrow:
                held = {
                    i: v if v.dtype == given[i] else v.astype(given[i]) for i, v in held.items()
                }
            return {**new, **held}, (loss, aux, kept, jax.lax.stop_gradient(of))

        end, (losses, aux, kept, of) = jax.lax.scan(one, {**leaves, **olds}, (inputs, shifts))
        return losses.sum(), (of, end, kept, losses, aux)

    differentiated = jax.value_and_grad(of_block, argnums=(0, 1, 2, 3), has_aux=True)
    (_, (of, end, *records)), (signal, olds, direct, dys) = differentiated(
        perturb, {i: leaves[i] for i in sorted(smooth)}, wanted, shifts
    )
    if not narrow:
        for i, value in step.direct.gradients(start, of, dys, parts).items():
            direct[i] = added(direct[i], value) if i in step.direct.elsewhere else value
    end = {i: v.astype(given[i]) if i in smooth else v for i, v in end.items()}
    found = {k: step.gradient_of(state, direct) for k, state in weights.items()}
    by_path = {path: step.gradient_of(state, olds) for path, state in states.items()}
    return found, signal, by_path, (end, *records)


def _whole(like: Any, *terms: Any) -> Any:
    """The sum of gradients of one leaf, of which each may be in parts; integer leaves have none."""
    if any(term.dtype == jax.dtypes.float0 for term in terms):
        return terms[0]
    return together(reduce(added, terms), jnp.ndim(like))
