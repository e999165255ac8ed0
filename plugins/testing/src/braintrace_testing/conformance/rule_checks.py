# SPDX-License-Identifier: Apache-2.0
"""The rules of a primitive family, against what is derived from ``impl``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace.ops.operation import Operation
from braintrace.ops.primitive import find_primitive
from braintrace.ops.traces import trace_rules
from braintrace.ops.traces.base import TraceRules
from braintrace.ops.traces.by_rules import StructuredTrace
from braintrace.ops.traces.dense import DenseTrace

from .case import ConformanceCase, Equation, equation_of, implementation, normal, run_with
from .check import case_check, close, require, same

STATES, STEPS = 2, 4
EXTRA: tuple[tuple[int, ...], ...] = ((), (2,))  # axes of a state along which y is broadcast


def _writes(*rules: str) -> Callable[[ConformanceCase], bool]:
    return lambda case: all(getattr(case.spec, rule) is not None for rule in rules)


def _structured(case: ConformanceCase) -> bool:
    return _writes("yw_to_w", "init_drtrl")(case)


@case_check("rules.weights_are_trainable_operands")
def weights_are_trainable_operands(case: ConformanceCase) -> None:
    """Every weight reaches the result, and only through the operands that are called trainable."""
    arguments = case.arguments()
    x, weights = arguments[: case.has_x], arguments[case.has_x :]
    target = normal(1, case.op(*arguments).shape)

    def through(handler: Any) -> Any:
        return jax.grad(lambda w: jnp.vdot(target, run_with(case, (*x, *w), handler)))(weights)

    def held(eqn: Any, operands: list[Any]) -> Any:
        for i in eqn.primitive.spec.resolve_trainable_invars(eqn.params).values():
            operands[i] = jax.lax.stop_gradient(operands[i])
        return implementation(eqn, operands)

    for i, (whole, rest) in enumerate(zip(through(implementation), through(held), strict=True)):
        require(whole.any(), f"weight {i} has no influence on the result")
        require(
            not rest.any(),
            f"weight {i} reaches the result through operands that trainable_invars_fn does not "
            "name; it would not be trained by its trace",
        )


@case_check("rules.batch_examples_are_apart", lambda case: case.batched)
def batch_examples_are_apart(case: ConformanceCase) -> None:
    """A batched implementation gives for each example what it gives for it alone."""
    equation = equation_of(case)
    operation, x, weights = equation.operation, equation.x, equation.weights
    require(x.shape[0] > 1, "the case needs a batch of at least two examples")
    whole = operation.run(x, weights, equation.operands)
    require(whole.shape[:1] == x.shape[:1], "y has another leading axis than x")
    for b in range(x.shape[0]):
        same(operation.run(x[b : b + 1], weights, equation.operands), whole[b : b + 1])


@case_check("rules.xy_to_dw_is_the_vjp", _writes("xy_to_dw"))
def xy_to_dw_is_the_vjp(case: ConformanceCase) -> None:
    """``xy_to_dw`` is the VJP of ``impl`` in its trainable operands."""
    equation = equation_of(case)
    dy = equation.like_y(1)
    found = equation.operation.xy_to_dw(equation.x, dy, equation.operands)
    same(found, equation.derived.xy_to_dw(equation.x, dy, equation.operands))


@case_check("rules.xy_to_dw_is_linear_in_dy", _writes("xy_to_dw"))
def xy_to_dw_is_linear_in_dy(case: ConformanceCase) -> None:
    """``xy_to_dw`` of a sum of cotangents is the sum of what it gives for each."""
    equation = equation_of(case)
    a, b = equation.like_y(1), equation.like_y(2)

    def rule(dy: Any) -> Any:
        return equation.operation.xy_to_dw(equation.x, dy, equation.operands)

    close(rule(2.5 * a - b), jax.tree.map(lambda p, q: 2.5 * p - q, rule(a), rule(b)))


def _has_written_counterpart(case: ConformanceCase) -> bool:
    return case.spec.batched_counterpart is not None


@case_check("rules.counterpart_sums_over_its_batch", _has_written_counterpart)
def counterpart_sums_over_its_batch(case: ConformanceCase) -> None:
    """The batched counterpart has the same weights; its ``xy_to_dw`` is the sum over examples."""
    equation = equation_of(case)
    name = case.spec.batched_counterpart or ""
    primitive = find_primitive(name)
    require(primitive is not None, f"the counterpart {name!r} is not registered")
    xs, dy = case.inputs(3), equation.like_y(1, 3)
    operation = replace(equation.operation, spec=primitive.spec)  # type: ignore[union-attr]
    require(operation.positions == equation.operation.positions, "trainable operands differ")
    terms = [equation.derived.xy_to_dw(xs[k], dy[k], equation.operands) for k in range(3)]
    same(operation.xy_to_dw(xs, dy, equation.operands), jax.tree.map(lambda *t: sum(t), *terms))


# --- traces ----------------------------------------------------------------------------------


class _Group(NamedTuple):
    """What an ``init_*`` rule may ask of a hidden group."""

    varshape: tuple[int, ...]
    num_state: int


def _initial(operation: Operation, rule: str, num_state: int) -> Any:
    group = _Group(operation.y_aval.shape, num_state)
    return replace(operation, group=group).initial(rule, num_state)


def _own_trace(equation: Equation, num_state: int) -> Any:
    return _initial(equation.operation, "init_drtrl", num_state)


@case_check("rules.init_drtrl", _structured)
def init_drtrl(case: ConformanceCase) -> None:
    """``init_drtrl`` gives zeros in the dtype of ``y``: an increment's axes, then the states."""
    for dtype in ("float32", "float64"):
        equation = equation_of(case, dtype)
        increment = _increments(StructuredTrace(equation.operation, (), 1), equation)
        for num_state in (1, 3):
            trace = _own_trace(equation, num_state)
            require(isinstance(trace, dict), f"got {type(trace).__name__}, expected a dict")
            keys = set(equation.operation.positions)
            require(set(trace) == keys, f"keys {sorted(trace)}, expected {sorted(keys)}")
            for key, leaf in increment.items():
                _check_zeros(key, trace[key], (*leaf.shape[1:], num_state), dtype)


def _increments(rules: TraceRules, equation: Equation) -> Any:
    f = equation.like_y(1, 1, 1)
    x = None if equation.x is None else equation.x[None]
    return rules.increments(x, f, equation.operands)


def _check_zeros(name: str, leaf: Any, shape: tuple[int, ...], dtype: Any) -> None:
    require(leaf.shape == shape, f"{name} has shape {leaf.shape}, expected {shape}")
    require(leaf.dtype == dtype, f"{name} has dtype {leaf.dtype}, expected {dtype}")
    require(not leaf.any(), f"{name} is not zero")


@case_check("rules.init_pp", _writes("init_pp"))
def init_pp(case: ConformanceCase) -> None:
    """``init_pp`` gives zeros in the dtype of ``y``: the axes of ``y``, then the states."""
    for dtype in ("float32", "float64"):
        operation = equation_of(case, dtype).operation
        for num_state in (1, 3):
            trace = _initial(operation, "init_pp", num_state)
            _check_zeros("the trace", trace, (*operation.y_aval.shape, num_state), dtype)


def _random_trace(equation: Equation) -> dict[str, Any]:
    leaves = _own_trace(equation, 1)
    return {key: normal(3, leaf.shape[:-1]) for key, leaf in leaves.items()}


@case_check("rules.yw_to_w_has_no_factor", _structured)
def yw_to_w_has_no_factor(case: ConformanceCase) -> None:
    """``yw_to_w`` with a factor of one everywhere leaves a trace as it is.

    A constant of the operation (``y = c x W``) belongs in ``xy_to_dw`` alone: ``yw_to_w`` both
    propagates a trace and contracts it with a signal.
    """
    equation = equation_of(case)
    trace, operation = _random_trace(equation), equation.operation
    ones = jnp.ones(operation.y_aval.shape)
    same(operation.written("yw_to_w", equation.operands)(ones, trace), trace)


@case_check("rules.yw_to_w_scales_each_entry", _structured)
def yw_to_w_scales_each_entry(case: ConformanceCase) -> None:
    """``yw_to_w`` by two factors one after the other is ``yw_to_w`` by their product."""
    equation = equation_of(case)
    trace, a, b = _random_trace(equation), equation.like_y(1), equation.like_y(2)
    rule = equation.operation.written("yw_to_w", equation.operands)
    same(rule(a, rule(b, trace)), rule(a * b, trace))


@case_check("rules.one_step_trace_gives_xy_to_dw")
def one_step_trace_gives_xy_to_dw(case: ConformanceCase) -> None:
    """The trace of one step, solved with a signal ``l``, is ``xy_to_dw(x, sum_s l f)``."""
    equation = equation_of(case)
    rules = trace_rules(equation.operation, (), STATES)
    f, signal = equation.like_y(1, 1, STATES), equation.like_y(2, STATES)
    x = None if equation.x is None else equation.x[None]
    trace = rules.increments(x, f, equation.operands)
    found = rules.solve(signal, trace, equation.operands)
    dy = (signal * f[0]).sum(0)
    same(found, _traced(equation, equation.derived.xy_to_dw(equation.x, dy, equation.operands)))


@case_check("rules.increments_drtrl_is_a_sum_over_steps", _writes("increments_drtrl"))
def increments_drtrl_is_a_sum_over_steps(case: ConformanceCase) -> None:
    """The increments of several steps at once are the sum of those of the single steps.

    Without ``increments_drtrl``, core takes ``instant_drtrl`` or ``xy_to_dw`` of each step.
    """
    equation = equation_of(case)
    one_by_one = replace(equation.operation.spec, increments_drtrl=None)
    operations = equation.operation, replace(equation.operation, spec=one_by_one)
    xs = [equation_of(case, seed=t).x for t in range(STEPS)]
    x = None if xs[0] is None else jnp.stack(xs)
    for extra in EXTRA:
        f = equation.like_y(1, STEPS, STATES, *extra)
        found, expected = (
            StructuredTrace(operation, extra, STATES).increments(x, f, equation.operands)
            for operation in operations
        )
        same(found, expected)


def _traced(equation: Equation, found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in equation.operation.traced}


@case_check("rules.written_trace_equals_the_derived_one", _structured)
def written_trace_equals_the_derived_one(case: ConformanceCase) -> None:
    """Over several steps with random transitions, the structured trace solves to the same weights
    as the dense one over [position, parameter]."""
    equation = equation_of(case)
    for extra in EXTRA:
        written = StructuredTrace(equation.operation, extra, STATES)
        dense = DenseTrace(equation.derived, extra, STATES)
        same(_solved(case, equation, written), _solved(case, equation, dense))


def _solved(case: ConformanceCase, equation: Equation, rules: TraceRules) -> list[dict[str, Any]]:
    """After each step, the trace contracted with a random signal."""
    xs = [equation_of(case, seed=t).x for t in range(STEPS)]
    return jax.jit(lambda: list(_steps(equation, rules, xs)))()


def _steps(equation: Equation, rules: TraceRules, xs: list[Any]) -> Iterator[dict[str, Any]]:
    extra, trace = rules.extra, rules.init()
    for t, x in enumerate(xs):
        f = equation.like_y(10 + t, 1, STATES, *extra)
        transition = equation.like_y(20 + t, STATES, STATES, *extra)
        added = rules.increments(None if x is None else x[None], f, equation.operands)
        trace = jax.tree.map(jnp.add, rules.propagate(transition, trace, equation.operands), added)
        signal = equation.like_y(30 + t, STATES, *extra)
        yield rules.solve(signal, trace, equation.operands)
