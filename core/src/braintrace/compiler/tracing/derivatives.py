# SPDX-License-Identifier: Apache-2.0
"""Operations of other libraries that a derivative has to pass and that have no reverse mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from ...base import versions
from ...base.versions import JaxprEqn, jaxp
from ...jaxprs.depends import Along, slice_to
from ...jaxprs.run import nested
from ...ops.primitive import is_etp_primitive
from ..module_info import ModuleInfo

#: Primitives of JAX itself, and what its functions are made of; each has its rules.
KNOWN = frozenset(value for value in vars(jaxp).values() if isinstance(value, versions.Primitive))


def operations_without_derivative(info: ModuleInfo) -> Iterator[tuple[JaxprEqn, str]]:
    """Equations on the way of a derivative that JAX cannot differentiate, and what it says.

    Of each primitive, the first one is tried.
    """
    others = {sub.primitive for eqn in info.eqns for sub in (eqn, *nested(eqn))} - KNOWN
    if all(map(is_etp_primitive, others)):
        return
    tried: set[Any] = set()
    for i in slice_to(info.eqns, info.jaxpr.outvars, along=Along.DERIVATIVES):
        eqn = info.eqns[i]
        new = {sub.primitive for sub in (eqn, *nested(eqn))} - KNOWN - tried
        new = {primitive for primitive in new if not is_etp_primitive(primitive)}
        moving = [
            k
            for k, a in enumerate(eqn.invars)
            if versions.is_var(a) and a in info.with_derivative and versions.is_float(a.aval)
        ]
        if new and moving:
            tried |= new
            if (said := _refusal(eqn, moving)) is not None:
                yield eqn, said


def _refusal(eqn: JaxprEqn, moving: list[int]) -> str | None:
    """What JAX says when an equation is differentiated in some operands; ``None``: it can be."""
    smooth = [k for k, var in enumerate(eqn.outvars) if versions.is_float(var.aval)]

    def reverse(operands: list[Any], bars: list[Any]) -> Any:
        def run(*values: Any) -> list[Any]:
            results = versions.bind_equation(eqn, values)
            return [results[k] for k in smooth]

        free = versions.partial_at(run, operands, moving)
        return jax.vjp(free, *(operands[k] for k in moving))[1](bars)

    avals = [atom.aval for atom in eqn.invars]
    try:
        with versions.types_of(avals):
            versions.make_jaxpr(reverse, avals, [eqn.outvars[k].aval for k in smooth])
    except (NotImplementedError, TypeError, ValueError) as error:
        return str(error).strip().partition("\n")[0].rstrip(".")
    return None
