# SPDX-License-Identifier: Apache-2.0
"""Loops: written out where an ETP operation stands inside, refused where no derivative passes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, Var, jaxp
from ...jaxprs.depends import Along, depends, operands_behind, program_influences
from ...jaxprs.run import run_inlined


def fixed_in_body(eqn: JaxprEqn, fixed: Sequence[bool]) -> list[bool]:
    """Which inputs of a body are fixed in every iteration."""
    consts, carried = versions.scan_counts(eqn)
    known = list(fixed)
    behind = program_influences(versions.sub_jaxpr(eqn), Along.VALUES)[:carried]
    for _ in range(carried):
        for k, found in enumerate(behind):
            known[consts + k] = known[consts + k] and all(known[i] for i in found)
    return known


def run_iterations(eqn: JaxprEqn, body: Jaxpr, operands: Sequence[Any]) -> list[Any]:
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


def loops_without_derivative(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every ``while`` through which a derivative would have to pass from an input to an output.

    JAX has no reverse mode for it.
    """
    yield from _loops(jaxpr, range(len(jaxpr.invars)), range(len(jaxpr.outvars)))


def _loops(jaxpr: Jaxpr, inputs: Collection[int], outputs: Collection[int]) -> Iterator[JaxprEqn]:
    suspects = [eqn for eqn in jaxpr.eqns if _holds_while(eqn)]
    if not suspects:
        return
    entering = [jaxpr.invars[i] for i in inputs]
    seeds = {v: frozenset({True}) for v in entering if versions.is_float(v.aval)}
    moving = depends(jaxpr.eqns, seeds, along=Along.DERIVATIVES)
    wanted = _wanted(jaxpr, outputs)
    for eqn in suspects:
        results = [k for k, v in enumerate(eqn.outvars) if v in wanted]
        behind = operands_behind(eqn, results, Along.DERIVATIVES)
        entries = [k for k in behind if versions.is_var(eqn.invars[k]) and eqn.invars[k] in moving]
        if entries and eqn.primitive is jaxp.while_p:
            yield eqn
        elif entries:
            for program, first in _programs(eqn):
                inside = [k - first for k in entries if k >= first]
                yield from _loops(program, *_with_carried(eqn, inside, results))


def _with_carried(
    eqn: JaxprEqn, inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[set[int], set[int]]:
    """Inputs and outputs of a body; a carried value of one iteration enters the next."""
    consts, carried = versions.scan_counts(eqn) if eqn.primitive is jaxp.scan_p else (0, 0)
    return {*inputs, *range(consts, consts + carried)}, {*outputs, *range(carried)}


def _programs(eqn: JaxprEqn) -> list[tuple[Jaxpr, int]]:
    """Programs that JAX differentiates as they stand, and the operand that is their first input."""
    if eqn.primitive is jaxp.cond_p:
        return [(versions.close(branch), 1) for branch in eqn.params["branches"]]
    if eqn.primitive is jaxp.scan_p or eqn.primitive in versions.CALL_PRIMITIVES:
        return [(versions.sub_jaxpr(eqn), 0)]
    return []


def _holds_while(eqn: JaxprEqn) -> bool:
    return eqn.primitive is jaxp.while_p or any(
        _holds_while(inner) for program, _ in _programs(eqn) for inner in program.eqns
    )


def _wanted(jaxpr: Jaxpr, outputs: Collection[int]) -> set[Var]:
    """Variables from which a derivative reaches some of the outputs."""
    wanted = {a for a in (jaxpr.outvars[k] for k in outputs) if versions.is_var(a)}
    for eqn in reversed(jaxpr.eqns):
        results = [k for k, var in enumerate(eqn.outvars) if var in wanted]
        if results:
            behind = operands_behind(eqn, results, Along.DERIVATIVES)
            wanted.update(eqn.invars[k] for k in behind if versions.is_var(eqn.invars[k]))
    return wanted
