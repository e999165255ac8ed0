# SPDX-License-Identifier: Apache-2.0
"""One step as a function whose reverse mode is the learning rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.rule import Block, LearningRule, Traces
from ..base import versions
from ..base.errors import NotSupportedError


def add_gradients(a: Any, b: Any) -> Any:
    """The sum of two cotangents of one leaf; integer leaves have none."""
    return a if jax.dtypes.float0 in (a.dtype, b.dtype) else jnp.add(a, b)


@jax.custom_vjp
def not_differentiable(results: Any, inputs: Any) -> Any:
    """``results``, which may not be differentiated with respect to ``inputs``.

    Their ordinary derivative would leave out everything that is in the traces.
    """
    return results


def _refuse(_: Any, cotangents: Any) -> Any:
    raise NotSupportedError(
        "the result of etrace_grad (its gradients and its losses) cannot be differentiated; "
        "differentiate a loss of learner(x), or use what etrace_grad returns as it is"
    )


not_differentiable.defvjp(lambda results, inputs: (results, None), _refuse)


@jax.custom_vjp
def _first_order(gradient: jax.Array, inputs: Any) -> jax.Array:
    """``gradient``, which may not be differentiated again with respect to ``inputs``.

    Traced operands are cut out of the step, so a second derivative would leave them out silently.
    """
    return gradient


def _refuse_again(_: Any, cotangent: Any) -> Any:
    raise NotSupportedError(
        "the gradient of learner(x) cannot be differentiated again: it is an online gradient, and "
        "its derivative is not that of any loss. Take second derivatives of the model itself"
    )


_first_order.defvjp(lambda gradient, inputs: (gradient, None), _refuse_again)


def guarded(gradients: Any, inputs: Any) -> Any:
    """``gradients``, of which those of integers (``float0``) are nothing to begin with."""
    return jax.tree.map(
        lambda g: g if g.dtype == jax.dtypes.float0 else _first_order(g, inputs), gradients
    )


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
            out, new, boundary = executor.run(args, {**states, **params}, perturb)
            return (out, {path: new[path] for path in states}), boundary

        perturb = plan.init_perturb_data()
        (out, new), pull, boundary = jax.vjp(program, params, args, states, perturb, has_aux=True)
        jacobians = jax.tree.map(lambda v: v[None], executor.jacobians_at(boundary))
        operands = executor.operand_values(params)
        block = Block(jacobians, (), ())
        after = rule.update(traces, block, operands)
        residuals = pull, jacobians, params, states, traces, after, given
        return (out, new, after), residuals

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
        traced = executor.param_gradients(params, found)
        params_bar = {
            path: jax.tree.map(add_gradients, value, traced[path]) if path in traced else value
            for path, value in direct.items()
        }
        zeros = jax.tree.map(versions.zero_cotangent, (states, traces, given))
        return *guarded((params_bar, args_bar), params), *zeros

    step.defvjp(forward, backward)
    return step
