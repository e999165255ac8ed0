# SPDX-License-Identifier: Apache-2.0
"""Paths of a step from the old values of a hidden group back to it: near ones, and the others.

A path is near while it crosses no ETP operation and meets no hidden state of another group. It ends
at the first new value of its group. Every equation is run twice, with the same numbers: what is
reached near carries one derivative, what is reached otherwise the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..base import versions
from ..base.versions import Var
from ..compiler.groups import HiddenGroup
from ..compiler.module_info import ModuleInfo
from ..jaxprs.run import read, run_equations


def run_with_nodes(
    info: ModuleInfo, ends: Sequence[Var], inputs: Sequence[Any], perturb: Sequence[Any]
) -> list[Any]:
    """The outputs of a step as it was traced, with something added to some of its variables."""
    added = dict(zip(ends, perturb, strict=True))
    env = versions.start_env(info.jaxpr, inputs)
    for eqn in info.eqns:
        run_equations([eqn], env)
        env |= {var: env[var] + added[var] for var in eqn.outvars if var in added}
    return [read(env, atom) for atom in info.jaxpr.outvars]


def two_ways(
    info: ModuleInfo,
    group: HiddenGroup,
    others: frozenset[Var],
    inputs: Sequence[Any],
    olds: Sequence[Any],
) -> tuple[list[Any], list[Any]]:
    """New values of a group, whose derivative in the old ones is that of detours, or of near paths.

    ``others`` are the new values of all other groups.
    """
    hold = jax.lax.stop_gradient
    far = {v: hold(value) for v, value in versions.start_env(info.jaxpr, inputs).items()}
    near: dict[Var, Any] = dict(zip(group.hidden_invars, olds, strict=True))
    found: dict[Var, tuple[Any, Any]] = {}

    def joined(var: Var) -> Any:
        """By way of a detour, or near until here."""
        return far[var] + (near[var] - hold(near[var])) if var in near else far[var]

    for i, eqn in enumerate(info.eqns):
        passes = [info.near(i, eqn, k) for k in range(len(eqn.invars))]
        variables = [a for a in eqn.invars if versions.is_var(a)]
        enters = any(
            versions.is_var(a) and a in near and ok
            for a, ok in zip(eqn.invars, passes, strict=True)
        )
        crossed = {a for a, ok in zip(eqn.invars, passes, strict=True) if a in variables and not ok}
        env = {var: joined(var) if var in crossed else far[var] for var in variables}
        run_equations([eqn], env)
        close: dict[Var, Any] = {}
        if enters:
            kept = near.keys() - crossed
            close = {var: near[var] if var in kept else hold(far[var]) for var in variables}
            run_equations([eqn], close)
        for var in eqn.outvars:
            far[var] = env[var]
            if var in close and versions.is_float(var.aval):
                near[var] = close[var]
            if var in group.hidden_outvars:
                found[var] = far[var], near.pop(var, hold(far[var]))
                far[var] = hold(far[var])
            elif var in others:
                far[var] = joined(var)
                near.pop(var, None)
    pairs = [found[var] for var in group.hidden_outvars]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
