# SPDX-License-Identifier: Apache-2.0
"""From cotangents of what is computed from parameters alone to cotangents of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import pulled_in
from ..base.versions import Atom, JaxprEqn, Var
from ..ops.traces.base import added
from .depends import Along, slice_to
from .run import read, run_equations


def pulled_to(
    leaves: Mapping[Var, Any],
    known: Mapping[Var, Any],
    eqns: Sequence[JaxprEqn],
    targets: Sequence[tuple[Atom, Any]],
) -> dict[Var, Any]:
    """Cotangents of ``leaves`` from those of atoms that ``eqns`` compute from them.

    ``known`` are the values of all other variables that the equations read. Cotangents may be wider
    than what they belong to: one that is sent to a leaf through conversions alone arrives as it is,
    and what is computed in half precision is passed by each cotangent by itself, scaled.
    """
    made = {var: eqn for eqn in eqns for var in eqn.outvars}
    moving = {var: value for var, value in leaves.items() if versions.is_float(value)}
    total: dict[Var, Any] = {}
    together: list[tuple[Atom, Any]] = []

    def take(found: Mapping[Var, Any]) -> None:
        total.update({v: jnp.add(total[v], bar) if v in total else bar for v, bar in found.items()})

    def pull(ends: Sequence[Atom]) -> Any:
        steps = [eqns[i] for i in slice_to(eqns, ends, along=Along.EQUATIONS)]

        def run(values: Sequence[Any]) -> list[Any]:
            env = {**known, **leaves, **dict(zip(moving, values, strict=True))}
            run_equations(steps, env)
            return [read(env, end) for end in ends]

        values, back = jax.vjp(run, [*moving.values()])
        return values, lambda bars: dict(zip(moving, back(bars)[0], strict=True))

    for atom, cotangent in targets:
        end = in_front_of_conversions(atom, made)
        if end in moving:
            take({end: cotangent})
        elif end.aval.dtype.itemsize < 4:
            (value,), back = pull([end])

            def alone(bar: Any, back: Any = back) -> list[Any]:
                return [*back([bar]).values()]

            bars = pulled_in(value.dtype, alone, cotangent)
            take(dict(zip(moving, bars, strict=True)))
        else:
            together.append((end, cotangent))
    if together:
        values, back = pull([end for end, _ in together])
        pairs = zip(values, together, strict=True)
        take(back([bar.astype(value.dtype) for value, (_, bar) in pairs]))
    return total


def pulled_in_parts(
    leaves: Mapping[Var, Any], known: Any, chain: Sequence[JaxprEqn], targets: Sequence[Any]
) -> dict[Var, Any]:
    """:func:`pulled_to` of cotangents, of which some, and what they give, are in parts [parts, ..].

    What is in parts meets no zeros of what is not, as long as its leaves have nothing else.
    """
    found: dict[Var, Any] = {}
    for several in (False, True):
        some = [(atom, bar) for atom, bar in targets if (bar.ndim > atom.aval.ndim) == several]
        ends = [atom for atom, _ in some]
        steps = [chain[i] for i in slice_to(chain, ends, along=Along.EQUATIONS)]
        reached = {*filter(versions.is_var, (*ends, *(a for eqn in steps for a in eqn.invars)))}
        own = {var: value for var, value in leaves.items() if var in reached}

        def pull(bars: Any, own: Any = own, ends: Any = ends, steps: Any = steps) -> list[Any]:
            found = pulled_to(own, known, steps, [*zip(ends, bars, strict=True)])
            return [found.get(var) for var in own]

        bars = [bar for _, bar in some]
        values = jax.vmap(pull)(bars) if several and bars else pull(bars)
        for var, bar in zip(own, values, strict=True):
            if bar is not None:
                found[var] = added(found[var], bar) if var in found else bar
    return found


def in_front_of_conversions(atom: Atom, made: Mapping[Var, JaxprEqn]) -> Atom:
    """What an atom is converted from, from one real floating-point dtype to another."""
    while versions.is_var(atom) and atom in made and converts(made[atom]):
        (atom,) = made[atom].invars
    return atom


def converts(eqn: JaxprEqn) -> bool:
    """Whether an equation converts from one real floating-point dtype to another."""
    ends = (*eqn.invars, *eqn.outvars)
    return eqn.primitive is versions.jaxp.convert_element_type_p and all(
        jnp.issubdtype(atom.aval.dtype, jnp.floating) for atom in ends
    )
