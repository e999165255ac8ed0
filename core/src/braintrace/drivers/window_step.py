# SPDX-License-Identifier: Apache-2.0
"""Windows: several steps in one call, with reverse mode inside and traces from before.

In a window of ``k`` steps that starts from the hidden states ``h^0``,

    dL/dw = (reverse mode through the window) + sum_g < dL/dh_g^0, eps_g^0 >

where the first part contains every path inside the window, recurrent products too, and the second
is the credit of what happened before it, as far as the traces know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Block, LearningRule, Traces
from ..base import versions
from ..compiler.module_info import StateKind
from .cotangents import add_traced, guarded

Predict = Callable[[Any, Mapping[Any, Any]], Mapping[Any, Any]]


def window_step(rule: LearningRule, predict: Predict | None = None) -> Callable[..., Any]:
    """A window as a function of parameters, predictor, arguments, states and traces.

    In reverse mode it returns the gradient of the window for the parameters, and that within the
    window for the arguments; for states and traces zero, as credit for the past is in the traces.

    Parameters
    ----------
    predict
        ``predict(parameters, hidden) -> cotangents``, by path: an estimate of the gradient of all
        later losses with respect to hidden values. It is added to the signal at the window's end,
        and its parameters get the gradient of ``|predict(h^0) - dL/dh^0|^2 / 2``.
    """
    executor = rule.executor
    info = executor.graph.module_info
    hidden = tuple(slot.path for slot in info.slots_of(StateKind.HIDDEN))

    def forward(params: Any, predictor: Any, args: Any, states: Any, traces: Traces) -> Any:
        def program(params: Any, args: Any, states: Any) -> Any:
            def one(states: Any, now: Any) -> tuple[Any, Any]:
                out, new, values = executor.run_plain(now, {**states, **params})
                fixed = jax.tree.map(jax.lax.stop_gradient, values)
                kept = {path: _strong(new[path]) for path in states}
                return kept, (out, executor.jacobians_at(fixed))

            new, (out, jacobians) = jax.lax.scan(one, _strong(states), args)
            return (out, new), jacobians

        (out, new), pull, jacobians = jax.vjp(program, params, args, states, has_aux=True)
        jacobians = jax.tree.map(jax.lax.stop_gradient, jacobians)
        after = rule.update(traces, Block(jacobians, (), ()), executor.operand_values(params))
        return (out, new, after), (pull, params, predictor, states, new, traces)

    @jax.custom_vjp
    def step(params: Any, predictor: Any, args: Any, states: Any, traces: Traces) -> Any:
        return forward(params, predictor, args, states, traces)[0]

    def backward(residuals: Any, cotangents: Any) -> Any:
        pull, params, predictor, states, new, traces = residuals
        out_bar, new_bar, _ = cotangents
        if predict is not None:
            future = predict(predictor, _arrays(new, hidden))
            added = {p: jax.tree.map(lambda v, p=p: v + future[p], new_bar[p]) for p in hidden}
            new_bar = {**new_bar, **added}
        params_bar, args_bar, old_bar = pull((out_bar, new_bar))
        olds = _arrays(old_bar, hidden)
        groups = range(len(executor.graph.hidden_groups))
        found = rule.solve_at_start(
            traces, executor.old_signals(olds, groups), executor.operand_values(params)
        )
        params_bar = add_traced(params_bar, executor.param_gradients(params, found))
        predictor_bar = _regression(predict, predictor, _arrays(states, hidden), olds)
        zeros = jax.tree.map(versions.zero_cotangent, (states, traces))
        guards = guarded((params_bar, predictor_bar, args_bar), params)
        return *guards, *zeros

    step.defvjp(forward, backward)
    return step


def _arrays(values: Mapping[Any, Any], paths: tuple[Any, ...]) -> dict[Any, Any]:
    """The array of every hidden value, without its unit."""
    return {path: jax.tree.leaves(values[path])[0] for path in paths}


def _regression(
    predict: Predict | None,
    parameters: Any,
    olds: Mapping[Any, Any],
    targets: Mapping[Any, Any],
) -> Any:
    """Gradient of half the squared error of a prediction in its parameters."""
    if predict is None:
        return jax.tree.map(versions.zero_cotangent, parameters)
    found, pull = jax.vjp(lambda p: predict(p, olds), parameters)
    return pull({path: found[path] - targets[path] for path in olds})[0]


def _strong(tree: Any) -> Any:
    """Arrays whose dtype is their own, not that of a Python number they were made from."""

    def one(value: Any) -> Any:
        value = jnp.asarray(value)
        return value.astype(value.dtype) if getattr(value, "weak_type", False) else value

    return jax.tree.map(one, tree)
