# SPDX-License-Identifier: Apache-2.0
"""Equations run in contexts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from braintrace.base import versions
from braintrace.compiler.contexts import Instruction, Read, plan_backward, run_in_contexts

X = jax.ShapeDtypeStruct((), "float32")


def program(x: Any) -> Any:
    y = jnp.sin(x)
    return jnp.cos(y) * y


def planned(*contexts: Any) -> tuple[Any, list[Instruction], list[Read]]:
    """The program, its plan for the result in some contexts, and how the results are read."""
    jaxpr = versions.make_jaxpr(program, X)
    made = {var for eqn in jaxpr.eqns for var in eqn.outvars}

    def operands(i: int, context: Any) -> tuple[Read, ...]:
        return tuple(Read(a, context if a in made else None) for a in jaxpr.eqns[i].invars)

    outputs = [Read(jaxpr.outvars[0], context) for context in contexts]
    return jaxpr, [*plan_backward(jaxpr.eqns, outputs, operands)], outputs


def test_what_is_needed_comes_last_first_and_once_per_context() -> None:
    _, plan, _ = planned("a")
    assert [(step.eqn, step.context) for step in plan] == [(2, "a"), (1, "a"), (0, "a")]
    _, plan, _ = planned("a", "b", "a")
    found = [(step.eqn, step.context) for step in plan]
    assert found == [(2, "a"), (2, "b"), (1, "a"), (1, "b"), (0, "a"), (0, "b")]
    assert planned(None)[1] == []


def test_a_plan_runs() -> None:
    jaxpr, plan, outputs = planned("a", "b")
    x = jnp.asarray(0.3, "float32")
    found = run_in_contexts(jaxpr.eqns, plan[::-1], {jaxpr.invars[0]: x}, outputs)
    assert found == [program(x)] * 2


def test_perturbations_and_stopped_gradients() -> None:
    jaxpr, _, _ = planned("a")
    (x,) = jaxpr.invars

    def run(x_: Any, perturbation: Any) -> Any:
        reads = [Read(x), Read(x, perturb=0), Read(x, perturb=0, stop=True)]
        a, b, c = run_in_contexts(jaxpr.eqns, [], {x: x_}, reads, [perturbation])
        return a + 10 * b + 100 * c

    assert run(2.0, 1.0) == 332.0
    assert jax.grad(run, (0, 1))(2.0, 1.0) == (11.0, 10.0)
    literal = versions.make_jaxpr(lambda x: x * 3.0, X).eqns[0].invars[1]
    assert run_in_contexts([], [], {}, [Read(literal)]) == [pytest.approx(3.0)]
