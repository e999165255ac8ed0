# SPDX-License-Identifier: Apache-2.0
"""Parts of a step as programs of their own: ``invars = [*free, *ins]`` and no constants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from .depends import Along, depends, slice_to
from .run import read


@dataclass(frozen=True, eq=False)
class Slice:
    """The equations on the way from ``ins`` to ``outs``; everything else they read is ``free``.

    ``held`` are variables at which the way ends: they are free even where an equation of the
    slice computes them, too.
    """

    eqns: tuple[JaxprEqn, ...]
    ins: tuple[Var, ...]
    outs: tuple[Atom, ...]
    free: tuple[Var, ...]
    held: frozenset[Var]

    def run(self, *values: Any, cut: Callable[[JaxprEqn], bool] = lambda eqn: False) -> list[Any]:
        """Values of ``outs`` for those of ``[*free, *ins]``.

        ``cut(eqn)``: whether no derivative passes an equation.
        """
        env = dict(zip((*self.free, *self.ins), values, strict=True))
        for eqn in self.eqns:
            results = versions.bind_equation(eqn, [read(env, atom) for atom in eqn.invars])
            if cut(eqn):
                results = [jax.lax.stop_gradient(value) for value in results]
            env |= {v: r for v, r in zip(eqn.outvars, results, strict=True) if v not in self.held}
        return [read(env, atom) for atom in self.outs]

    def jaxpr(self) -> Jaxpr:
        """The slice as a jaxpr ``[*free, *ins] -> outs`` without constants."""
        avals = [var.aval for var in (*self.free, *self.ins)]
        with versions.types_of(avals):
            return versions.make_jaxpr(self.run, *avals)


def between(
    eqns: Sequence[JaxprEqn],
    ins: Iterable[Var],
    outs: Iterable[Atom],
    held: Iterable[Var] = (),
    follows: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
    along: Along = Along.VALUES,
) -> Slice:
    """The slice of a program from ``ins`` to ``outs`` along operands that ``follows`` accepts.

    Parameters
    ----------
    eqns
        The program.
    ins, outs
        Where the ways begin and end.
    held
        Variables through which no way leads.
    follows
        ``follows(index, eqn, operand_position)``: whether a way may lead through that operand.
    along
        Whether the ways are those of values or of derivatives.
    """
    ins, outs, held = tuple(ins), tuple(outs), frozenset(held)

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        return follows(i, eqn, operand) and not (versions.is_var(atom) and atom in held)

    marks = depends(eqns, {var: frozenset({0}) for var in ins}, enters, along=along)
    inside = tuple(
        eqns[i]
        for i in slice_to(eqns, outs, enters, along)
        if any(marks.get(var) for var in eqns[i].outvars) and not set(ins) & set(eqns[i].outvars)
    )
    known = ({var for eqn in inside for var in eqn.outvars} | set(ins)) - held
    wanted = (*(atom for eqn in inside for atom in eqn.invars), *outs)
    free = dict.fromkeys(a for a in wanted if versions.is_var(a) and a not in known)
    return Slice(inside, ins, outs, tuple(free), held)
