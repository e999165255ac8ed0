# SPDX-License-Identifier: Apache-2.0
"""Branches that are the same program for one example and under ``vmap``.

A branch that is taken example by example becomes a ``select`` under ``vmap``, with which the passes
after this one could follow what they cannot follow into a branch. So that a step means the same in
both cases, a branch whose programs only add, move and scale by numbers, and no two of them the same
value, is a ``select`` for one example, too: its slopes are these numbers, and finite. Any other one
stays one equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, Var, jaxp
from ...jaxprs.credit import with_credit
from ...jaxprs.depends import Along, program_influences
from ...jaxprs.linear import is_sum
from ...jaxprs.run import inlined, run_inlined, with_replacements


def with_selects(jaxpr: Jaxpr) -> Jaxpr:
    """A program in which branches that add, move and scale are selects; itself without any."""
    found: dict[int, Callable[..., Any]] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        if eqn.primitive is not jaxp.cond_p or eqn.effects:
            continue
        branches = [inlined(branch) for branch in versions.inner_jaxprs(eqn)]
        linear = all(_scales(e) for branch in branches for e in branch.eqns)
        if linear and not _taken_twice(eqn, branches) - {*jaxpr.invars}:
            found[i] = partial(_selected, branches)
    return with_replacements(jaxpr, found) if found else jaxpr


def _scales(eqn: JaxprEqn) -> bool:
    """Whether an equation adds, moves, or scales by a finite number."""
    if is_sum(eqn):
        return not eqn.primitive.name.startswith(("reduce_", "cum"))  # branches save work
    numbers = [a.val for a in eqn.invars if not versions.is_var(a)]
    scaled = eqn.primitive.name == "mul" or (
        eqn.primitive.name == "div" and not versions.is_var(eqn.invars[1])
    )
    return scaled and len(numbers) == 1 and bool(np.all(np.isfinite(numbers[0])))


def _taken_twice(eqn: JaxprEqn, branches: Sequence[Jaxpr]) -> set[Var]:
    """The operands that more than one branch makes something of: each would be a factor in time."""
    behind = [frozenset().union(*program_influences(b, Along.DERIVATIVES)) for b in branches]
    operands = enumerate(eqn.invars[1:])
    return {a for k, a in operands if versions.is_var(a) and sum(k in own for own in behind) > 1}


def _selected(branches: Sequence[Jaxpr], index: Any, *operands: Any) -> list[Any]:
    results = zip(*(run_inlined(branch, operands) for branch in branches), strict=True)
    return [jax.lax.select_n(index, *values) for values in results]


def with_whole_branches(jaxpr: Jaxpr) -> Jaxpr:
    """A program that can be mapped, and whose branches no linear map leads into then."""
    found = {
        i: partial(_whole, eqn)
        for i, eqn in enumerate(jaxpr.eqns)
        if eqn.primitive is jaxp.cond_p and not eqn.effects
    }
    return with_replacements(jaxpr, found) if found else jaxpr


def _whole(eqn: JaxprEqn, *operands: Any) -> list[Any]:
    """The results as values with a derivative, their own, which is no linear map of operands."""
    results = versions.bind_equation(eqn, operands)
    return [with_credit(v, v) if versions.is_float(v) else v for v in results]
