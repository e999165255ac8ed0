# SPDX-License-Identifier: Apache-2.0
"""One step, or a window of several, for rules that keep the influence on all that is carried.

As in ``steps``, both are functions of all that is read, whose reverse mode is the learning rule:

    dL/dw = (reverse mode through the window) + < dL/ds^0, M^0 >

A single step of a rule with a mask is cut at its new states, whose signals meet the traces after
it; see ``InfluenceRule``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Traces
from ..algorithms.influence import InfluenceRule
from ..base import versions
from ..base.precision import widened
from .steps import add_traced, guarded, narrowed, reversed_by, strong


def influence_step(rule: InfluenceRule) -> Callable[..., Any]:
    """One step; ``index`` is the number of steps since the traces were zero."""
    run = _of_window(rule, rule.perturbations())

    def step(
        params: Any, args: Any, states: Any, traces: Traces, given: Any, index: Any = 1
    ) -> Any:
        wide = jax.tree.map(lambda v: v[None], args)
        out, new, after = run(params, wide, states, traces, given, index)
        return jax.tree.map(lambda v: v[0], out), new, after

    return step


def influence_window(rule: InfluenceRule) -> Callable[..., Any]:
    return _of_window(rule, ())


def _of_window(rule: InfluenceRule, perturb: Any) -> Callable[..., Any]:
    """A window, of one step if there are perturbations."""

    def forward(params: Any, args: Any, states: Any, traces: Traces, given: Any, index: Any) -> Any:
        types = jax.tree.map(jax.typeof, params)

        def program(wide: Any, args: Any, states: Any, perturb: Any) -> Any:
            def one(states: Any, now: Any) -> tuple[Any, Any]:
                params = narrowed(wide, types)  # at each step, so that gradients add up in wide
                out, new, kept = rule.run(now, {**states, **params}, perturb)
                moved = {path: strong(new[path]) for path in states}
                return moved, (out, jax.lax.stop_gradient(kept))

            new, (out, kept) = jax.lax.scan(one, strong(states), args)
            return (out, new), kept

        inputs = widened(params, jnp.dtype(jnp.float32)), args, states, perturb
        (out, new), pull, kept = jax.vjp(program, *inputs, has_aux=True)
        after = rule.after_steps(traces, kept, params, index == 0)
        return (out, new, after), (pull, params, states, traces, after, given, index)

    def backward(residuals: Any, cotangents: Any) -> Any:
        pull, params, states, traces, after, given, index = residuals
        direct, args_bar, olds, signals = pull(cotangents[:2])
        found = rule.credit(traces, olds, params, index == 0, after, signals)
        params_bar = narrowed(add_traced(direct, found), params)
        zeros = jax.tree.map(versions.zero_cotangent, (states, traces, given, index))
        return *guarded((params_bar, args_bar), params), *zeros

    return reversed_by(forward, backward)
