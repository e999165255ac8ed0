# SPDX-License-Identifier: Apache-2.0
"""Gradients of a sequence, in blocks of single steps or in windows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base.types import State, show_path
from ..compiler.program import StateKind
from ..compiler.requirements import check_states
from . import guards
from .block import BlockRunner
from .block_size import auto_block_size
from .in_windows import windowed_gradient
from .leaves import common_length, flat_states, write_states
from .losses import masked_step, scale_of
from .online_step import add_gradients, not_differentiable
from .options import GradOptions, Outcome, Running
from .sweep import Extras, sweep
from .traced import trace_step


def gradient(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence, inside a compiled program."""
    if options.chunk_size is not None:
        return windowed_gradient(learner, options, sequences, mask)
    return _blocked(learner, options, sequences, mask)


def _blocked(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    rule, steps = learner.rule, common_length(sequences)
    check_states(learner.model, learner.graph.module_info)
    weights = [state for _, state in options.weights]
    inputs = (mask, *sequences)
    first = jax.tree.map(lambda v: v[0], inputs)
    step_fn = masked_step(options.step_fn, options.has_aux)
    traced = trace_step(learner.rule.executor, step_fn, learner.attach, first, weights)
    runner = BlockRunner(rule, traced, tuple(weights))
    size = options.block_size
    if isinstance(size, str):
        recorded = traced.direct.bytes_per_step
        size = auto_block_size(rule, steps, options.carry_trace, recorded)
    params = {path: state.value for path, state in learner.states_of(StateKind.PARAM).items()}
    names = {i: name for name, i in _direct_names(learner, runner).items()}
    extras = Extras(
        flags=partial(guards.flags_of, rule) if options.check else None,
        names=names,
        progress=options.progress,
    )
    result = sweep(
        runner,
        flat_states(traced.states),
        tuple(t.value for t in learner.traces) if options.carry_trace else None,
        inputs,
        learner.rule.executor.operand_values(params),
        size,
        keep_trace=options.carry_trace or options.check,
        scale=scale_of(options.reduction, mask, steps),
        extras=extras,
    )
    by_path = learner.rule.executor.param_gradients(params, result.operands)
    grads = tuple(_total(learner, w, traced, result.direct, by_path) for w in weights)
    parameters = list(learner.states_of(StateKind.PARAM).values())
    write_states(traced.states, result.leaves, skip=[*parameters, *weights])
    kept = options.carry_trace and result.traces is not None
    learner.write_traces(result.traces if kept else rule.init(), steps)
    losses, aux = result.aux
    fixed = not_differentiable((grads, losses, aux), (params, sequences, mask))
    grads, losses, aux = fixed
    return Outcome(grads, losses, aux, result.flags)


def _direct_names(learner: Running, runner: BlockRunner) -> dict[str, int]:
    """Leaves of the parameters that have direct gradients, by their path."""
    paths = {state: path for path, state in learner.param_states.items()}
    return {
        _leaf_name(paths.get(state), state, k): i
        for state in runner.targets
        for k, i in enumerate(runner.step.leaves_of(state) or ())
        if i in runner.step.live
    }


def _total(
    learner: Running,
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
    for path, other in learner.states_of(StateKind.PARAM).items():
        if other is state and path in by_path:
            found = jax.tree.leaves(by_path[path])
            total = [add_gradients(a, b) for a, b in zip(total, found, strict=True)]
    return jax.tree.unflatten(treedef, total)


def _leaf_name(path: Any, state: State, index: int) -> str:
    """The name of a leaf of a parameter."""
    (place, _) = jax.tree_util.tree_leaves_with_path(state.value)[index]
    name = "a parameter" if path is None else show_path(path)
    return f"{name}{jax.tree_util.keystr(place)}"
