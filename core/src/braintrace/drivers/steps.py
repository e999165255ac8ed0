# SPDX-License-Identifier: Apache-2.0
"""One step, or a window of several, as a function whose reverse mode is the learning rule.

Both are functions of all that is read: the parameters, the arguments, the states, the traces, and
what is given besides. In reverse mode they return the gradient of the learning rule for the
parameters, that within the step or window for the arguments, and zero for states and traces: credit
for the past is in the traces, not in a chain of steps. A loss around several calls therefore has
the sum of their online gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ..algorithms.base import Block, LearningRule, Traces
from ..base import versions
from ..base.errors import NotSupportedError
from ..base.precision import widened
from ..base.types import Path
from ..compiler.filters import credit_of
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from .first import finite_where_still, unless_first, without_past

Predict = Callable[[Any, Mapping[Any, Any]], Mapping[Any, Any]]


def online_step(rule: LearningRule) -> Callable[..., Any]:
    """One step; the rule is given something besides as ``Block.given``, usually ``None``.

    ``index`` is the number of steps since the traces were zero.
    """
    executor, plan = rule.executor, rule.executor.graph.perturbed
    exact = executor.graph.exact
    hidden = set(plan.perturb_hidden_paths)

    def forward(params: Any, args: Any, states: Any, traces: Traces, given: Any, index: Any) -> Any:
        def program(params: Any, args: Any, states: Any, perturb: Any) -> Any:
            out, new, values = executor.run(args, {**states, **params}, perturb)
            if exact is not None:
                new |= exact.credited(new)
            return (out, {path: new[path] for path in states}), values

        perturb = plan.init_perturb_data()
        (out, new), pull, values = jax.vjp(program, params, args, states, perturb, has_aux=True)
        jacobians = jax.tree.map(lambda v: v[None], executor.jacobians_at(values))
        jacobians = without_past(jacobians, index == 0)
        after = rule.update(traces, Block(jacobians, (), ()), executor.operand_values(params))
        return (out, new, after), (pull, jacobians, params, states, traces, after, given, index)

    def backward(residuals: Any, cotangents: Any) -> Any:
        pull, jacobians, params, states, traces, after, given, index = residuals
        direct, args_bar, old_bar, signal = pull(cotangents[:2])
        olds = _arrays(old_bar, hidden.intersection(old_bar))
        old = unless_first(executor.old_signals(olds, plan.old_reads), index == 0)
        signals = executor.signals(signal), old
        block = Block(jacobians, *jax.tree.map(lambda v: v[None], (*signals, given)))
        block = finite_where_still(executor, block, index == 0)
        found = rule.solve_after(traces, after, block, executor.operand_values(params))
        params_bar = add_traced(direct, executor.param_gradients(params, found))
        zeros = jax.tree.map(versions.zero_cotangent, (states, traces, given, index))
        return *guarded((params_bar, args_bar), params), *zeros

    return reversed_by(forward, backward)


def window_step(rule: LearningRule, predict: Predict | None = None) -> Callable[..., Any]:
    """A window of ``k`` steps, which starts from the hidden states ``h^0``.

        dL/dw = (reverse mode through the window) + sum_g < dL/dh_g^0, eps_g^0 >

    where the first part contains every path inside the window, recurrent products too, and the
    second is the credit of what happened before it, as far as the traces know it.

    ``predict(given, hidden) -> cotangents``, by path, estimates the gradient of all later losses
    with respect to hidden values. It is added to the signal at the window's end, and its parameters
    ``given`` get the gradient of ``|predict(h^0) - dL/dh^0|^2 / 2``, but where ``h^0`` is the start
    of all and has no finite derivative. ``index`` is as for :func:`online_step`.
    """
    executor, graph = rule.executor, rule.executor.graph
    hidden = [slot.path for slot in graph.module_info.slots_of(StateKind.HIDDEN)]
    filters = [slot.path for slot in graph.module_info.slots if slot.is_filter]

    def forward(params: Any, args: Any, states: Any, traces: Traces, given: Any, index: Any) -> Any:
        def plain(params: Any, states: Any, now: Any) -> Any:
            out, new, values = executor.run_plain(now, {**states, **params})
            kept = {path: strong(new[path]) for path in states}
            kept |= {path: jax.lax.stop_gradient(new[path]) for path in filters}
            return (out, kept), values

        def program(wide: Any, args: Any, states: Any, shifts: Any) -> Any:
            def one(states: Any, now: Any) -> tuple[Any, Any]:
                params = narrowed(wide, types)  # at each step, so that gradients add up in wide
                ((out, kept), values), moving = run(params, states, *now)
                fixed = jax.tree.map(jax.lax.stop_gradient, values)
                return kept, (out, executor.jacobians_at(fixed), moving)

            new, (out, *recorded) = jax.lax.scan(one, strong(states), (args, shifts))
            return (out, new), recorded

        run: Any = lambda *of: (plain(*of[:3]), ())  # noqa: E731
        shifts: Any = ()
        direct: Any = None
        if executor.parts > 1:
            from .products_of_window import WindowProducts  # which one device has no need of

            products = WindowProducts.of(plain, params, strong(states), [v[0] for v in args])
            run, shifts, direct = products.run, products.shifts(len(args[0])), products.gradients
        types = jax.tree.map(jax.typeof, params)
        wide = widened(params, jnp.dtype(jnp.float32))
        ends = wide, args, states, shifts
        (out, new), pull, (jacobians, moving) = jax.vjp(program, *ends, has_aux=True)
        direct = direct and Partial(direct, params, moving)
        jacobians = without_past(jax.tree.map(jax.lax.stop_gradient, jacobians), index == 0)
        after = rule.update(traces, Block(jacobians, (), ()), executor.operand_values(params))
        return (out, new, after), (pull, direct, params, states, new, traces, given, index)

    def backward(residuals: Any, cotangents: Any) -> Any:
        pull, direct, params, states, new, traces, given, index = residuals
        out_bar, new_bar, _ = cotangents
        if predict is not None:
            future = predict(given, _arrays(new, hidden))
            added = {p: jax.tree.map(lambda v, p=p: v + future[p], new_bar[p]) for p in hidden}
            new_bar = {**new_bar, **added}
        params_bar, args_bar, old_bar, dys = pull((out_bar, new_bar))
        olds = _arrays(old_bar, hidden)
        if lent := _arrays(old_bar, credited_paths(graph)):
            lent = dict(zip(lent, unless_first((*lent.values(),), index == 0), strict=True))
            of_filters, of_params = credit_at_start(graph, lent, states, params, filters)
            olds |= {path: bar for path, bar in of_filters.items() if path in olds}
            params_bar = add_traced(params_bar, of_params)
        signals = executor.old_signals(olds, range(len(graph.hidden_groups)))
        signals = unless_first(signals, index == 0)
        found = rule.solve_at_start(traces, signals, executor.operand_values(params))
        by_traces = executor.param_gradients(params, found, direct and direct(dys, executor))
        params_bar = narrowed(add_traced(params_bar, by_traces), params)
        given_bar = jax.tree.map(versions.zero_cotangent, given)
        if predict is not None:
            given_bar = _missed(predict, given, _arrays(states, hidden), olds, index)
        zeros = jax.tree.map(versions.zero_cotangent, (states, traces, index))
        found_bars = guarded((params_bar, args_bar, given_bar), params)
        return *found_bars[:2], *zeros[:2], found_bars[2], zeros[2]

    return reversed_by(forward, backward)


def reversed_by(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """A step or window with these two passes; ``index`` may be left out, where it is not zero."""

    @jax.custom_vjp
    def step(
        params: Any, args: Any, states: Any, traces: Traces, given: Any, index: Any = 1
    ) -> Any:
        return forward(params, args, states, traces, given, index)[0]

    step.defvjp(forward, backward)
    return step


def _missed(
    predict: Predict, given: Any, start: Mapping[Path, Any], olds: Mapping[Path, Any], index: Any
) -> Any:
    """The gradient of what ``predict`` missed at the start of a window, for its parameters."""
    predicted, pull = jax.vjp(lambda given: predict(given, start), given)
    missed = {path: predicted[path] - olds[path] for path in start}
    known = {path: jnp.isfinite(olds[path]) | (index != 0) for path in start}
    return pull({path: jnp.where(known[path], v, 0) for path, v in missed.items()})[0]


def credited_paths(graph: ETraceGraph) -> list[Path]:
    """The states whose values have the derivative of filters: uniform ones, and of small groups."""
    uniform = () if graph.moving is None else graph.moving.uniform
    return [*uniform, *(() if graph.exact is None else graph.exact.small)]


def credit_at_start(
    graph: ETraceGraph, bars: Mapping[Path, Any], states: Any, params: Any, filters: Sequence[Path]
) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """Cotangents of filters and parameters from those of such states, where a window starts."""
    moving, exact = graph.moving, graph.exact

    def credit(own: Mapping[Path, Any], params: Any) -> dict[Path, Any]:
        values = {**states, **own, **params}
        small = {} if exact is None else exact.credited(values)
        uniform = {} if moving is None else credit_of(moving, {**values, **small})
        return {**_arrays(small, small), **uniform}

    of, pull = jax.vjp(credit, {path: states[path] for path in filters}, params)
    found: tuple[dict[Path, Any], dict[Path, Any]] = pull(narrowed(bars, of))
    return found


def narrowed(tree: Any, like: Any) -> Any:
    """Floating-point arrays in the dtypes of others."""
    return jax.tree.map(
        lambda leaf, own: leaf.astype(own.dtype) if versions.is_float(leaf) else leaf, tree, like
    )


def _arrays(values: Mapping[Any, Any], paths: Iterable[Any]) -> dict[Any, Any]:
    """The array of every hidden value, without its unit."""
    return {path: jax.tree.leaves(values[path])[0] for path in paths}


def strong(tree: Any) -> Any:
    """Arrays whose dtype is their own, not that of a Python number they were made from."""
    return jax.tree.map(
        lambda v: v.astype(v.dtype) if getattr(v, "weak_type", False) else v,
        jax.tree.map(jnp.asarray, tree),
    )


# --- cotangents ----------------------------------------------------------------------------------


def add_gradients(a: Any, b: Any) -> Any:
    """The sum of two cotangents of one leaf; integer leaves have none."""
    return a if jax.dtypes.float0 in (a.dtype, b.dtype) else jnp.add(a, b)


def add_scaled(total: Any, found: Any, scale: Any) -> Any:
    """A sum of gradients, to which another one is added times ``scale``, in its dtype.

    Scaled at the end, each would take a kernel of its own.
    """
    if jax.dtypes.float0 in (total.dtype, found.dtype):
        return total
    return total + (found.astype(total.dtype) * scale).astype(total.dtype)


def end_of_sum(total: jax.Array, like: Any) -> jax.Array:
    """A sum of gradients in the dtype of what it is the gradient of."""
    return total.astype(jnp.result_type(like))


def add_traced(direct: Mapping[Any, Any], traced: Mapping[Any, Any]) -> dict[Any, Any]:
    """Cotangents of all parameters by path, to which those through traces are added."""
    return {
        path: jax.tree.map(add_gradients, value, traced[path]) if path in traced else value
        for path, value in direct.items()
    }


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _refusing(message: str, results: Any, inputs: Any) -> Any:
    """``results``, which refuse to be differentiated in ``inputs``."""
    return results


def _refuse(message: str, kept: Any, cotangents: Any) -> Any:
    raise NotSupportedError(message)


_refusing.defvjp(lambda message, results, inputs: (results, None), _refuse)

#: The ordinary derivative would leave out everything that is in the traces.
not_differentiable = partial(
    _refusing,
    "the result of etrace_grad (its gradients and its losses) cannot be differentiated; "
    "differentiate a loss of learner(x), or use what etrace_grad returns as it is",
)

#: Traced operands are cut out of the step, and a second derivative would leave them out silently.
_first_order = partial(
    _refusing,
    "the gradient of learner(x) cannot be differentiated again: it is an online gradient, and "
    "its derivative is not that of any loss. Take second derivatives of the model itself",
)


def guarded(gradients: Any, inputs: Any) -> Any:
    """``gradients``, of which those of integers (``float0``) are nothing to begin with."""
    return jax.tree.map(
        lambda g: g if g.dtype == jax.dtypes.float0 else _first_order(g, inputs), gradients
    )
