# SPDX-License-Identifier: Apache-2.0
"""Loops: written out where an ETP operation stands inside, refused where no derivative passes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, Var, jaxp
from ...jaxprs.depends import Along, depends, influences, marks_of, operands_behind
from ...jaxprs.run import holds, run_inlined

#: What JAX differentiates by differentiating the programs inside.
TRANSPARENT = versions.CALL_PRIMITIVES | {jaxp.cond_p, jaxp.scan_p}


def fixed_in_body(eqn: JaxprEqn, fixed: Sequence[bool]) -> list[bool]:
    """Which inputs of the body of a ``scan`` are fixed in every iteration."""
    consts, carried = versions.scan_counts(eqn)
    known = list(fixed)
    for k, behind in enumerate((influences(eqn, Along.VALUES) or ())[:carried], consts):
        known[k] = fixed[k] and all(fixed[i] for i in behind)
    return known


def run_iterations(eqn: JaxprEqn, body: Jaxpr, *operands: Any) -> list[Any]:
    """The results of a ``scan``, its iterations run one after the other."""
    consts, carried = versions.scan_counts(eqn)
    outside, carry = operands[:consts], list(operands[consts : consts + carried])
    xs, length = operands[consts + carried :], eqn.params["length"]
    rows: list[list[Any]] = [[]] * length
    for t in range(length)[:: -1 if eqn.params["reverse"] else 1]:
        now = [jax.lax.index_in_dim(x, t, keepdims=False) for x in xs]
        results = run_inlined(body, [*outside, *carry, *now])
        carry, rows[t] = results[:carried], results[carried:]
    if not length:
        return [*carry, *(jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[carried:])]
    return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def loops_without_derivative(
    jaxpr: Jaxpr, inputs: Collection[int] | None = None, outputs: Collection[int] | None = None
) -> Iterator[JaxprEqn]:
    """Every ``while`` through which a derivative would have to pass: JAX has no reverse mode.

    It is on the way from one of ``inputs`` to one of ``outputs`` (by position; default: all).
    """
    for i, enters, leaves in passed_loops(jaxpr, inputs, outputs):
        if jaxpr.eqns[i].primitive is jaxp.while_p:
            yield jaxpr.eqns[i]
            continue
        for program in versions.inner_jaxprs(jaxpr.eqns[i]):
            yield from loops_without_derivative(program, enters, leaves)


def passed_loops(
    jaxpr: Jaxpr, inputs: Collection[int] | None, outputs: Collection[int] | None
) -> Iterator[tuple[int, set[int], set[int]]]:
    """Equations that are, or hold, a ``while`` through which a derivative has to pass.

    They come by index, with the positions at which the derivative enters and leaves the programs
    inside. What holds one is a branch, a loop of fixed length or a call.
    """
    suspects = [i for i, eqn in enumerate(jaxpr.eqns) if holds(eqn, jaxp.while_p)]
    if not suspects:
        return
    made = {var for i in suspects for var in jaxpr.eqns[i].outvars}
    entering = [v for i, v in enumerate(jaxpr.invars) if inputs is None or i in inputs]
    leaving = [a for i, a in enumerate(jaxpr.outvars) if outputs is None or i in outputs]
    seeds = {var: frozenset({True}) for var in entering if versions.is_float(var.aval)}

    def through(var: Var, marks: frozenset[Any]) -> frozenset[Any]:
        return marks | {var} if var in made else marks

    passed = depends(jaxpr.eqns, seeds, through=through, along=Along.DERIVATIVES)
    wanted = marks_of(passed, leaving)
    for i in suspects:
        eqn = jaxpr.eqns[i]
        results = [k for k, var in enumerate(eqn.outvars) if var in wanted]
        behind = operands_behind(eqn, results, Along.DERIVATIVES)
        entries = [k for k in behind if versions.is_var(eqn.invars[k]) and eqn.invars[k] in passed]
        if not entries or eqn.primitive not in TRANSPARENT | {jaxp.while_p}:
            continue
        # a carried value of one iteration enters the next
        consts, carried = versions.scan_counts(eqn) if eqn.primitive is jaxp.scan_p else (0, 0)
        first = 1 if eqn.primitive is jaxp.cond_p else 0  # behind the index of the branch
        enters = {*(k - first for k in entries), *range(consts, consts + carried)}
        leaves = {*results, *range(carried)}
        inside = (passed_loops(p, enters, leaves) for p in versions.inner_jaxprs(eqn))
        if eqn.primitive is jaxp.while_p or any(map(any, inside)):
            yield i, enters, leaves
