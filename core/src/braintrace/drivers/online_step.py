# SPDX-License-Identifier: Apache-2.0
"""One step as a function whose reverse mode is the learning rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..algorithms.base import Block, LearningRule, Traces
from ..base import versions
from .cotangents import add_traced, guarded


def online_step(rule: LearningRule) -> Callable[..., Any]:
    """One step with online gradients, as a function of all that it reads.

    These are the parameters, the arguments, the states, the traces, and what the caller gives to
    the rule besides (``Block.given``; usually ``None``). In reverse mode it returns the gradient
    of the learning rule for the parameters, that of the current step for the arguments, and zero
    for states, traces and what is given: credit for the past is in the traces, not in a chain of
    steps. A loss around several calls therefore has the sum of their online gradients.
    """
    executor, plan = rule.executor, rule.executor.graph.perturbed
    hidden = set(plan.perturb_hidden_paths)

    def forward(params: Any, args: Any, states: Any, traces: Traces, given: Any) -> Any:
        def program(params: Any, args: Any, states: Any, perturb: Any) -> Any:
            out, new, values = executor.run(args, {**states, **params}, perturb)
            return (out, {path: new[path] for path in states}), values

        perturb = plan.init_perturb_data()
        (out, new), pull, values = jax.vjp(program, params, args, states, perturb, has_aux=True)
        jacobians = jax.tree.map(lambda v: v[None], executor.jacobians_at(values))
        after = rule.update(traces, Block(jacobians, (), ()), executor.operand_values(params))
        return (out, new, after), (pull, jacobians, params, states, traces, after, given)

    @jax.custom_vjp
    def step(params: Any, args: Any, states: Any, traces: Traces, given: Any) -> Any:
        return forward(params, args, states, traces, given)[0]

    def backward(residuals: Any, cotangents: Any) -> Any:
        pull, jacobians, params, states, traces, after, given = residuals
        out, new, _ = cotangents
        direct, args_bar, late, signal = pull((out, new))
        old = {path: jax.tree.leaves(value)[0] for path, value in late.items() if path in hidden}
        signals = executor.signals(signal), executor.old_signals(old, plan.late_reads)
        block = Block(jacobians, *jax.tree.map(lambda v: v[None], (*signals, given)))
        found = rule.solve_after(traces, after, block, executor.operand_values(params))
        params_bar = add_traced(direct, executor.param_gradients(params, found))
        zeros = jax.tree.map(versions.zero_cotangent, (states, traces, given))
        return *guarded((params_bar, args_bar), params), *zeros

    step.defvjp(forward, backward)
    return step
