# SPDX-License-Identifier: Apache-2.0
"""Gradients of a sequence, in blocks of single steps or in windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..base.types import State, show_path
from ..compiler.module_info import StateKind
from ..compiler.requirements import check_states
from . import guards
from .block_size import auto_block_size
from .blocks import BlockRunner, in_blocks
from .cotangents import add_gradients, not_differentiable
from .in_windows import in_windows
from .losses import masked_step, scale_of
from .options import GradOptions, Outcome, common_length
from .progress import Progress
from .running import Running
from .traced import TracedStep, trace_step


def gradient(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence, inside a compiled program."""
    weights = [state for _, state in options.weights]
    values = [state.value for state in (*learner.states_of(StateKind.PARAM).values(), *weights)]
    run = _in_blocks if options.chunk_size is None else in_windows
    *found, flags = run(learner, options, sequences, mask)
    grads, losses, aux = not_differentiable(tuple(found), (values, sequences, mask))
    return Outcome(grads, losses, aux, flags)


def _in_blocks(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    rule, steps, inputs = learner.rule, common_length(sequences), (mask, *sequences)
    check_states(learner.model, learner.graph.module_info)
    weights = tuple(state for _, state in options.weights)
    first = jax.tree.map(lambda v: v[0], inputs)
    traced = trace_step(learner, masked_step(options.step_fn, options.has_aux), first, weights)
    size = options.block_size
    if isinstance(size, str):
        size = auto_block_size(rule, steps, options.carry_trace, traced.direct.bytes_per_step)
    progress = Progress(-(-steps // size)) if options.progress else None
    names = _names(learner, weights, traced)

    def after(number: Any, block: Any, found: Any, traces: Any, direct: Any, losses: Any) -> Any:
        if progress is not None:
            progress.advance(number, losses)
        if options.check:
            named = {names[i]: value for i, value in direct.items()}
            return guards.flags_of(rule, block, found, traces, named, losses)
        return None

    params = {path: state.value for path, state in learner.states_of(StateKind.PARAM).items()}
    (leaves, traces, direct, operands), (_, (losses, aux), flags) = in_blocks(
        BlockRunner(rule, traced, weights),
        (traced.read(), learner.read_traces() if options.carry_trace else None),
        inputs,
        rule.executor.operand_values(params),
        size,
        keep_trace=options.carry_trace or options.check,
        scale=scale_of(options.reduction, mask, steps),
        after=after,
    )
    by_path = rule.executor.param_gradients(params, operands)
    grads = tuple(_total(learner, w, traced, direct, by_path) for w in weights)
    traced.write(leaves)
    learner.write_traces(traces if options.carry_trace else rule.init(), steps)
    return Outcome(grads, losses, aux, flags)


def _names(learner: Running, weights: Sequence[State], traced: TracedStep) -> dict[int, str]:
    """What the leaves of the wanted parameters are called, by their place in a step."""
    paths = {state: show_path(path) for path, state in learner.param_states.items()}
    return {
        i: f"{paths.get(state, 'a parameter')}{jax.tree_util.keystr(place)}"
        for state in weights
        for i, (place, _) in zip(
            traced.leaves.get(state, ()),
            jax.tree_util.tree_leaves_with_path(state.value),
            strict=False,
        )
    }


def _total(
    learner: Running,
    state: State,
    traced: TracedStep,
    direct: Mapping[int, Any],
    by_path: Mapping[Any, Any],
) -> Any:
    """Direct plus traced gradient of one parameter, zero where neither exists."""
    leaves, treedef = jax.tree.flatten(state.value)
    total = [jnp.zeros_like(leaf) for leaf in leaves]
    for k, i in enumerate(traced.leaves.get(state, ())):
        if i in direct:
            total[k] = add_gradients(total[k], direct[i])
    weight = learner.rule.executor.weights.get(state)
    if weight is not None and weight.path in by_path:
        found = jax.tree.leaves(by_path[weight.path])
        total = [add_gradients(a, b) for a, b in zip(total, found, strict=True)]
    return jax.tree.unflatten(treedef, total)
