# SPDX-License-Identifier: Apache-2.0
"""A value with the derivative of another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from ..base import versions
from ..base.versions import Atom, JaxprEqn, Var
from .run import read, run_equations

with_credit_p = versions.Primitive("with_credit")
versions.install_credit(with_credit_p)
across_p = versions.Primitive("across")
versions.install_credit(across_p)


def with_credit(value: Any, of: Any) -> jax.Array:
    """``value``, with the derivative of ``of``, which has its shape and dtype.

    ``of`` is not computed, but for what its derivative needs.
    """
    found: jax.Array = with_credit_p.bind(jax.lax.stop_gradient(value), of)
    return found


def across(value: Any) -> jax.Array:
    """``value``, of which hidden states keep no trace, as they keep none behind an operation."""
    found: jax.Array = across_p.bind(jax.lax.stop_gradient(value), value)
    return found


def run_uncredited(eqns: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
    """Run equations in which each value has its own derivative, not that of another one."""
    held: dict[Atom, Atom] = {}
    for eqn in eqns:
        if eqn.primitive is with_credit_p:
            env[eqn.outvars[0]] = read(env, held.get(eqn.invars[0], eqn.invars[0]))
            continue
        run_equations([eqn], env)
        if eqn.primitive is versions.jaxp.stop_gradient_p:
            held[eqn.outvars[0]] = eqn.invars[0]
