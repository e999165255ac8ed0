# SPDX-License-Identifier: Apache-2.0
"""Branches with ETP operations inside, as segments of branches and operations in the open.

A ``select`` between the results of all branches would be wrong where a branch that is not taken
has no finite value or slope: zero times infinity is not a number. A branch is therefore *cut* at
its ETP equations:

    segment 0 | operation 0 | segment 1 | operation 1 | ... | last segment

The segments with the same number of all branches run in one ``switch``, which runs that of the
taken branch and gives zeros for what the others hand on. The operations run at every step, on an
``x`` of zero if their branch is not taken. What they make of it is read by later segments of
their branch alone, so the derivative ``f`` through them is zero at such a step, as is what they
add to a trace. ``D`` is that of the taken branch. The last ``switch`` has the results of the
original one.

Equations that lead from parameters and constants to an operand other than ``x`` run outside of
all branches: such an operand may depend on nothing else. They are run at every step, so a
parameter must be in their domain at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from ...base import versions
from ...base.versions import Atom, Jaxpr, Var
from ...jaxprs.depends import depends, slice_to
from ...jaxprs.run import read, run_equations
from ...jaxprs.sites import etp_equations


def varying_variables(jaxpr: Jaxpr, fixed: Sequence[bool]) -> frozenset[Var]:
    """Variables of a program that depend on an input that is not fixed."""
    seeds = {
        v: frozenset({True}) for v, known in zip(jaxpr.invars, fixed, strict=True) if not known
    }
    return frozenset(depends(jaxpr.eqns, seeds))


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch as segments between its ETP equations.

    Attributes
    ----------
    jaxpr
        The branch; its ETP equations stand in the open.
    fixed
        For each input, whether it is made of parameters and constants.
    """

    jaxpr: Jaxpr
    fixed: tuple[bool, ...]

    @cached_property
    def varying(self) -> frozenset[Var]:
        return varying_variables(self.jaxpr, self.fixed)

    def in_step(self, atom: Atom) -> bool:
        """Whether an operand depends on more than parameters and constants."""
        return versions.is_var(atom) and atom in self.varying

    @cached_property
    def outside(self) -> tuple[int, ...]:
        """Equations that lead from parameters and constants to operands of operations."""
        eqns = self.jaxpr.eqns
        wanted = [
            atom
            for i in etp_equations(eqns)
            for k, atom in enumerate(eqns[i].invars)
            if not self.handed_over(i, k)
        ]
        return tuple(slice_to(eqns, wanted))

    def handed_over(self, i: int, operand: int) -> bool:
        """Whether a segment computes that operand, so that it is zero if the branch is not taken.

        It does for ``x``, and for whatever else depends on inputs or states.
        """
        eqn = self.jaxpr.eqns[i]
        return operand == eqn.primitive.spec.x_invar_index or self.in_step(eqn.invars[operand])

    @cached_property
    def operations(self) -> tuple[int, ...]:
        """ETP equations at which the branch is cut."""
        return tuple(i for i in etp_equations(self.jaxpr.eqns) if i not in self.outside)

    @cached_property
    def segments(self) -> tuple[tuple[int, ...], ...]:
        """Equations in front of each operation, and behind the last; each as late as possible."""
        eqns, last = self.jaxpr.eqns, len(self.operations)
        numbers = {i: n for n, i in enumerate(self.operations)}
        needed: dict[Var, int] = {a: last for a in self.jaxpr.outvars if versions.is_var(a)}
        segments: list[list[int]] = [[] for _ in range(last + 1)]
        skipped = set(self.outside)
        for i in range(len(eqns) - 1, -1, -1):
            eqn = eqns[i]
            readers = [needed[v] for v in eqn.outvars if v in needed]
            if i in skipped or not (readers or eqn.effects or i in numbers):
                continue
            n = numbers.get(i, min(readers, default=last))
            if i not in numbers:
                segments[n].insert(0, i)
            for atom in eqn.invars:
                if versions.is_var(atom):
                    needed[atom] = min(n, needed.get(atom, last))
        return tuple(map(tuple, segments))

    def start(self, operands: Sequence[Any]) -> dict[Var, Any]:
        """What is known before the first segment."""
        env = dict(versions.constants(self.jaxpr))
        env.update(zip(self.jaxpr.invars, operands, strict=True))
        run_equations([self.jaxpr.eqns[i] for i in self.outside], env)
        return env

    @cached_property
    def handed_on(self) -> tuple[tuple[Var, ...], ...]:
        """For each segment, the variables it computes that later segments read."""
        eqns = self.jaxpr.eqns
        read_by = [
            {a for a in [*(a for i in s for a in eqns[i].invars), *out] if versions.is_var(a)}
            for s, out in zip(self.segments, self.results, strict=True)
        ]
        made = [[v for i in s for v in eqns[i].outvars] for s in self.segments]
        return tuple(
            tuple(v for v in made[n] if any(v in later for later in read_by[n + 1 :]))
            for n in range(len(made))
        )

    @cached_property
    def results(self) -> tuple[tuple[Atom, ...], ...]:
        """What each segment is there for: operands of an operation, or the branch's results."""
        eqns = self.jaxpr.eqns
        operands = [
            tuple(a for k, a in enumerate(eqns[i].invars) if self.handed_over(i, k))
            for i in self.operations
        ]
        return (*operands, tuple(self.jaxpr.outvars))

    def exports(self, n: int) -> list[Atom]:
        """What comes out of segment ``n``."""
        return [*self.results[n], *self.handed_on[n]]

    def run_segment(self, n: int, env: dict[Var, Any]) -> list[Any]:
        """The exports of segment ``n``."""
        inside = dict(env)
        run_equations([self.jaxpr.eqns[i] for i in self.segments[n]], inside)
        return [read(inside, atom) for atom in self.exports(n)]

    def take(self, n: int, exported: Sequence[Any], env: dict[Var, Any]) -> None:
        """Run operation ``n`` on what segment ``n`` handed over, and keep what it handed on."""
        i = self.operations[n]
        eqn, values = self.jaxpr.eqns[i], iter(exported)
        operands = [
            next(values) if self.handed_over(i, k) else read(env, atom)
            for k, atom in enumerate(eqn.invars)
        ]
        # a layer that is itself a branch is attributed to the line of the branches
        results = versions.bind_equation(eqn, operands, own_source=versions.has_source(eqn))
        env.update(zip(eqn.outvars, results, strict=True))
        env.update(zip(self.handed_on[n], values, strict=True))


def run_branches(branches: Sequence[Branch], index: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of a ``cond`` whose branches are cut at their ETP equations."""
    envs = [branch.start(operands) for branch in branches]
    for n in range(max(len(branch.operations) for branch in branches)):
        cut = [k for k, branch in enumerate(branches) if n < len(branch.operations)]
        exported = iter(
            jax.lax.switch(index, [_stage(branches, envs, cut, n, j) for j in range(len(branches))])
        )
        for k in cut:
            mine = [next(exported) for _ in branches[k].exports(n)]
            branches[k].take(n, mine, envs[k])

    def last(branch: Branch, env: dict[Var, Any]) -> Callable[[], list[Any]]:
        return lambda: branch.run_segment(len(branch.operations), env)

    return jax.lax.switch(index, [last(b, env) for b, env in zip(branches, envs, strict=True)])


def _stage(
    branches: Sequence[Branch],
    envs: Sequence[dict[Var, Any]],
    cut: Sequence[int],
    n: int,
    taken: int,
) -> Callable[[], list[Any]]:
    """Segment ``n`` when branch ``taken`` is: its exports, and zeros for those of the others."""

    def run() -> list[Any]:
        results: list[Any] = []
        for k in cut:
            if k == taken:
                results += branches[k].run_segment(n, envs[k])
            else:
                results += [nothing(atom.aval) for atom in branches[k].exports(n)]
        return results

    return run


def nothing(aval: Any) -> Any:
    """Zeros of a type."""
    return jax.lax.full(aval.shape, 0, aval.dtype)
