# SPDX-License-Identifier: Apache-2.0
"""The rules of a primitive family, against what is derived from ``impl``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.ops.operation import Operation
from braintrace.ops.primitive import find_primitive
from braintrace.ops.traces import trace_rules
from braintrace.ops.traces.base import TraceRules
from braintrace.ops.traces.by_rules import StructuredTrace
from braintrace.ops.traces.dense import DenseTrace

from ..quick import jit
from .case import (
    ConformanceCase,
    Equation,
    equation_of,
    implementation,
    normal,
    operation_of,
    run_with,
    steps_of,
)
from .check import case_check, close, require, same
from .variants import agree

STATES, STEPS = 2, 4
SUMS = (1, 4, 19)  # steps that are added up
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
    target = normal(1, jax.eval_shape(case.op, *arguments).shape)

    def through(handler: Any, given: Any) -> Any:
        return jax.grad(lambda w: jnp.vdot(target, run_with(case, (*x, *w), handler)))(given)

    def held(eqn: Any, operands: list[Any]) -> Any:
        for i in eqn.primitive.spec.resolve_trainable_invars(eqn.params).values():
            operands[i] = jax.lax.stop_gradient(operands[i])
        return implementation(eqn, operands)

    both = jit(lambda given: (through(implementation, given), through(held, given)))(weights)
    for i, (whole, rest) in enumerate(zip(*both, strict=True)):
        require(np.asarray(whole).any(), f"weight {i} has no influence on the result")
        require(
            not np.asarray(rest).any(),
            f"weight {i} reaches the result through operands that trainable_invars_fn does not "
            "name; it would not be trained by its trace",
        )


@case_check("rules.batch_examples_are_apart", lambda case: case.batched)
def batch_examples_are_apart(case: ConformanceCase) -> None:
    """A batched implementation gives for each example what it gives for it alone."""
    equation = equation_of(case)
    operation, x, weights = equation.operation, equation.x, equation.weights
    require(x.shape[0] > 1, "the case needs a batch of at least two examples")
    run, x = jit(lambda x: operation.run(x, weights, equation.operands)), np.asarray(x)
    whole = np.asarray(run(x))
    require(whole.shape[:1] == x.shape[:1], "y has another leading axis than x")
    for b in range(x.shape[0]):
        same(run(x[b : b + 1]), whole[b : b + 1])


@case_check("rules.xy_to_dw_is_the_vjp", _writes("xy_to_dw"))
def xy_to_dw_is_the_vjp(case: ConformanceCase) -> None:
    """``xy_to_dw`` is the VJP of ``impl`` in its trainable operands, also for small and large
    numbers and with zeros and spikes among them."""
    equation = equation_of(case)

    def both(x: Any, dy: Any, operands: Any) -> tuple[Any, Any]:
        written, derived = equation.operation, equation.derived
        return tuple(rule.xy_to_dw(x, dy, operands) for rule in (written, derived))

    agree(equation, both, equation.x, equation.like_y(1))


@case_check("rules.xy_to_dw_is_linear_in_dy", _writes("xy_to_dw"))
def xy_to_dw_is_linear_in_dy(case: ConformanceCase) -> None:
    """``xy_to_dw`` of a sum of cotangents is the sum of what it gives for each."""
    equation = equation_of(case)
    a, b = np.asarray(equation.like_y(1)), np.asarray(equation.like_y(2))
    rule = jit(lambda dy: equation.operation.xy_to_dw(equation.x, dy, equation.operands))
    terms = (jax.tree.map(np.asarray, rule(dy)) for dy in (a, b))
    close(rule(2.5 * a - b), jax.tree.map(lambda p, q: 2.5 * p - q, *terms))


@case_check("rules.sums_over_steps", lambda case: case.spec.batched_counterpart is None)
def sums_over_steps(case: ConformanceCase) -> None:
    """What is added up over 1, 4 and 19 steps at once is the sum of what the VJP of ``impl`` gives
    for each step."""
    _check_sums(case, equation_of(case).operation.contract)


def _check_sums(case: ConformanceCase, contract: Callable[..., Any]) -> None:
    equation = equation_of(case)

    def both(x: Any, dy: Any, operands: Any) -> tuple[Any, Any]:
        def sums(n: int) -> Any:
            found = contract(None if x is None else x[:n], dy[:n], operands)
            return _traced(equation, found)

        def one(given: Any) -> Any:
            return _traced(equation, equation.derived.xy_to_dw(*given, operands))

        each = jax.lax.map(one, (x, dy))
        return tuple(map(sums, SUMS)), tuple(
            {key: value[:n].sum(0) for key, value in each.items()} for n in SUMS
        )

    agree(equation, both, steps_of(case, SUMS[-1]), equation.like_y(1, SUMS[-1]))


def _has_written_counterpart(case: ConformanceCase) -> bool:
    return case.spec.batched_counterpart is not None


@case_check("rules.counterpart_sums_over_its_batch", _has_written_counterpart)
def counterpart_sums_over_its_batch(case: ConformanceCase) -> None:
    """The batched counterpart has the same weights; its ``xy_to_dw`` is the sum over examples, of
    which there are 1, 4 and 19."""
    equation = equation_of(case)
    name = case.spec.batched_counterpart or ""
    primitive = find_primitive(name)
    require(primitive is not None, f"the counterpart {name!r} is not registered")
    operation = replace(equation.operation, spec=primitive.spec)  # type: ignore[union-attr]
    require(operation.positions == equation.operation.positions, "trainable operands differ")
    _check_sums(case, operation.xy_to_dw)


# --- traces ----------------------------------------------------------------------------------


class _Group(NamedTuple):
    """What an ``init_*`` rule may ask of a hidden group."""

    varshape: tuple[int, ...]
    num_state: int


def _initial(operation: Operation, rule: str, num_state: int) -> Any:
    group = _Group(operation.y_aval.shape, num_state)
    return replace(operation, group=group).initial(rule, num_state)


def _each_initial(case: ConformanceCase, rule: str) -> Iterator[tuple[str, Operation, int, Any]]:
    """Dtype, operation, number of states, and what a rule gives for them."""
    kinds = [(d, operation_of(case, d), n) for d in ("float32", "float64") for n in (1, 3)]
    traces = jit(lambda: [_initial(operation, rule, n) for _, operation, n in kinds])()
    for kind, trace in zip(kinds, traces, strict=True):
        yield *kind, trace


@case_check("rules.init_drtrl", _structured)
def init_drtrl(case: ConformanceCase) -> None:
    """``init_drtrl`` gives zeros in the dtype of ``y``: an increment's axes, then the states."""
    for dtype, operation, num_state, trace in _each_initial(case, "init_drtrl"):
        require(isinstance(trace, dict), f"got {type(trace).__name__}, expected a dict")
        keys = set(operation.positions)
        require(set(trace) == keys, f"keys {sorted(trace)}, expected {sorted(keys)}")
        for key, leaf in _increment_types(operation).items():
            _check_zeros(key, trace[key], (*leaf.shape[1:], num_state), dtype)


def _increment_types(operation: Operation) -> Any:
    """Types of the increments of one step and one state."""
    x, y = operation.x_aval, operation.y_aval
    steps = [None if v is None else jax.ShapeDtypeStruct((1, *v.shape), v.dtype) for v in (x, y)]
    f = jax.ShapeDtypeStruct((1, 1, *y.shape), y.dtype)
    rules = StructuredTrace(operation, (), 1)
    return jax.eval_shape(rules.increments, steps[0], f, list(operation.operand_avals))


def _check_zeros(name: str, leaf: Any, shape: tuple[int, ...], dtype: Any) -> None:
    require(leaf.shape == shape, f"{name} has shape {leaf.shape}, expected {shape}")
    require(leaf.dtype == dtype, f"{name} has dtype {leaf.dtype}, expected {dtype}")
    require(not np.asarray(leaf).any(), f"{name} is not zero")


@case_check("rules.init_pp", _writes("init_pp"))
def init_pp(case: ConformanceCase) -> None:
    """``init_pp`` gives zeros in the dtype of ``y``: the axes of ``y``, then the states."""
    for dtype, operation, num_state, trace in _each_initial(case, "init_pp"):
        _check_zeros("the trace", trace, (*operation.y_aval.shape, num_state), dtype)


def _random_trace(equation: Equation) -> dict[str, Any]:
    leaves = jax.eval_shape(lambda: _initial(equation.operation, "init_drtrl", 1))
    return {key: normal(3, leaf.shape[:-1]) for key, leaf in leaves.items()}


@case_check("rules.yw_to_w_has_no_factor", _structured)
def yw_to_w_has_no_factor(case: ConformanceCase) -> None:
    """``yw_to_w`` with a factor of one everywhere leaves a trace as it is.

    A constant of the operation (``y = c x W``) belongs in ``xy_to_dw`` alone: ``yw_to_w`` both
    propagates a trace and contracts it with a signal.
    """
    equation = equation_of(case)
    shape, rule = equation.operation.y_aval.shape, _yw_to_w(equation)

    def both(_: Any, trace: Any, operands: Any) -> tuple[Any, Any]:
        return rule(operands)(jnp.ones(shape), trace), trace

    agree(equation, both, None, _random_trace(equation))


def _yw_to_w(equation: Equation) -> Callable[[Any], Callable[[Any, Any], Any]]:
    return partial(equation.operation.written, "yw_to_w")


@case_check("rules.yw_to_w_scales_each_entry", _structured)
def yw_to_w_scales_each_entry(case: ConformanceCase) -> None:
    """``yw_to_w`` by two factors one after the other is ``yw_to_w`` by their product."""
    equation = equation_of(case)
    a, rule = equation.like_y(1), _yw_to_w(equation)

    def both(_: Any, given: Any, operands: Any) -> tuple[Any, Any]:
        b, trace = given
        scaled = rule(operands)
        return scaled(a, scaled(b, trace)), scaled(a * b, trace)

    agree(equation, both, None, (equation.like_y(2), _random_trace(equation)))


@case_check("rules.one_step_trace_gives_xy_to_dw")
def one_step_trace_gives_xy_to_dw(case: ConformanceCase) -> None:
    """The trace of one step, solved with a signal ``l``, is ``xy_to_dw(x, sum_s l f)``."""
    equation = equation_of(case)
    rules = trace_rules(equation.operation, (), STATES)

    def both(x: Any, given: Any, operands: Any) -> tuple[Any, Any]:
        f, signal = given
        trace = rules.increments(None if x is None else x[None], f, operands)
        dy = (signal * f[0]).sum(0)
        expected = equation.derived.xy_to_dw(x, dy, operands)
        return rules.solve(signal, trace, operands), _traced(equation, expected)

    agree(equation, both, equation.x, (equation.like_y(1, 1, STATES), equation.like_y(2, STATES)))


@case_check("rules.increments_drtrl_is_a_sum_over_steps", _writes("increments_drtrl"))
def increments_drtrl_is_a_sum_over_steps(case: ConformanceCase) -> None:
    """The increments of 1, 4 and 19 steps at once are the sum of those of the single steps.

    Without ``increments_drtrl``, core takes ``instant_drtrl`` or ``xy_to_dw`` of each step.
    """
    equation = equation_of(case)
    one_by_one = replace(equation.operation.spec, increments_drtrl=None)
    operations = equation.operation, replace(equation.operation, spec=one_by_one)

    def both(x: Any, f: Any, operands: Any) -> tuple[Any, Any]:
        def sums(operation: Operation) -> Any:
            return [
                StructuredTrace(operation, extra, STATES).increments(
                    None if x is None else x[:n], f[extra][:n], operands
                )
                for extra in EXTRA
                for n in (SUMS if not extra else (STEPS,))
            ]

        return tuple(map(sums, operations))

    agree(equation, both, steps_of(case, SUMS[-1]), _factors(equation, SUMS[-1]))


def _factors(equation: Equation, steps: int) -> dict[tuple[int, ...], Any]:
    """Random factors, by the axes along which y is broadcast."""
    return {extra: equation.like_y(1, steps, STATES, *extra) for extra in EXTRA}


def _traced(equation: Equation, found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in equation.operation.traced}


@case_check("rules.written_trace_equals_the_derived_one", _structured)
def written_trace_equals_the_derived_one(case: ConformanceCase) -> None:
    """Over several steps with random transitions, the structured trace solves to the same weights
    as the dense one over [position, parameter]."""
    equation = equation_of(case)

    def both(x: Any, f: Any, operands: Any) -> tuple[Any, Any]:
        def solved(kind: Any, operation: Operation) -> Any:
            return [_solved(equation, kind(operation, e, STATES), x, f[e], operands) for e in EXTRA]

        return solved(StructuredTrace, equation.operation), solved(DenseTrace, equation.derived)

    agree(equation, both, steps_of(case, STEPS), _factors(equation, STEPS))


def _solved(equation: Equation, rules: TraceRules, x: Any, f: Any, operands: Any) -> dict[str, Any]:
    """After each step, the trace contracted with a random signal."""
    transitions = equation.like_y(2, STEPS, STATES, STATES, *rules.extra)
    signals = equation.like_y(3, STEPS, STATES, *rules.extra)

    def step(trace: Any, now: Any) -> tuple[Any, Any]:
        x, f, transition, signal = now
        added = rules.increments(None if x is None else x[None], f[None], operands)
        trace = jax.tree.map(jnp.add, rules.propagate(transition, trace, operands), added)
        return trace, rules.solve(signal, trace, operands)

    return jax.lax.scan(step, rules.init(), (x, f, transitions, signals))[1]
