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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from operator import not_
from typing import Any, NamedTuple

import jax

from ...base import versions
from ...base.versions import Atom, Jaxpr, JaxprEqn, Var
from ...jaxprs.depends import depends, slice_to
from ...jaxprs.run import etp_equations, read, run_equations

Env = dict[Var, Any]


def varying_variables(jaxpr: Jaxpr, fixed: Sequence[bool]) -> frozenset[Var]:
    """Variables of a program that depend on an input that is not fixed."""
    inputs = zip(jaxpr.invars, fixed, strict=True)
    seeds = {var: frozenset({True}) for var, known in inputs if not known}
    return frozenset(depends(jaxpr.eqns, seeds))


@dataclass(frozen=True, eq=False)
class Segment:
    """What a branch runs in front of an operation, or behind its last one.

    ``masked`` says of each operand of the operation whether the segment hands it over, so that it
    is zero if the branch is not taken. That is ``x``, and whatever else depends on inputs or
    states. ``exports`` are these operands, or the results of the branch, and then the variables
    that later segments read.
    """

    eqns: Sequence[JaxprEqn]
    operation: JaxprEqn | None
    masked: tuple[bool, ...]
    exports: tuple[Atom, ...]

    def run(self, env: Env) -> list[Any]:
        """The exports when the branch is taken."""
        inside = dict(env)
        run_equations(self.eqns, inside)
        return [read(inside, atom) for atom in self.exports]

    def skip(self) -> list[Any]:
        """The exports when it is not."""
        return [jax.lax.full(atom.aval.shape, 0, atom.aval.dtype) for atom in self.exports]

    def operate(self, values: Iterator[Any], env: Env) -> None:
        """Run the operation on what was handed over, and keep what is for later segments."""
        eqn: JaxprEqn = self.operation
        pairs = zip(eqn.invars, self.masked, strict=True)
        operands = [next(values) if masked else read(env, atom) for atom, masked in pairs]
        # a layer that is itself a branch is attributed to the line of the branches
        results = versions.bind_equation(eqn, operands, own_source=bool(versions.source_of(eqn)))
        env.update(zip(eqn.outvars, results, strict=True))
        env.update((var, next(values)) for var in self.exports[sum(self.masked) :])


class Branch(NamedTuple):
    """One branch: what runs ``outside`` of it at every step, and its segments."""

    jaxpr: Jaxpr
    outside: Sequence[JaxprEqn]
    segments: Sequence[Segment]


def cut(jaxpr: Jaxpr, fixed: Sequence[bool]) -> Branch:
    """A branch whose ETP equations stand in the open, as segments between them.

    ``fixed`` says of each input whether it is made of parameters and constants. Every equation is
    in the last segment that it can be in.
    """
    eqns, varying = jaxpr.eqns, varying_variables(jaxpr, fixed)
    masked = {
        i: tuple(
            k == eqns[i].primitive.spec.x_invar_index or (versions.is_var(a) and a in varying)
            for k, a in enumerate(eqns[i].invars)
        )
        for i in etp_equations(eqns)
    }
    unmasked = [a for i in masked for a in compress(eqns[i].invars, map(not_, masked[i]))]
    outside = slice_to(eqns, unmasked)
    operations = [i for i in masked if i not in outside]
    last, number = len(operations), {i: n for n, i in enumerate(operations)}
    read_in: dict[Var, set[int]] = {a: {last} for a in jaxpr.outvars if versions.is_var(a)}
    inside: list[list[int]] = [[] for _ in range(last + 1)]
    for i in sorted({*range(len(eqns))} - {*outside}, reverse=True):
        eqn = eqns[i]
        readers = {n for var in eqn.outvars for n in read_in.get(var, ())}
        if i in number:
            n = number[i]
        elif readers or eqn.effects:
            n = min(readers, default=last)
            inside[n].insert(0, i)
        else:
            continue
        for atom in filter(versions.is_var, eqn.invars):
            read_in.setdefault(atom, set()).add(n)
    segments = []
    for n, mine in enumerate(inside):
        operation, results = None, jaxpr.outvars
        handed_over: tuple[bool, ...] = ()
        if n < last:
            operation, handed_over = eqns[operations[n]], masked[operations[n]]
            results = compress(operation.invars, handed_over)
        made = (var for i in mine for var in eqns[i].outvars)
        exports = (*results, *(var for var in made if max(read_in.get(var, {n})) > n))
        segments.append(Segment([eqns[i] for i in mine], operation, handed_over, exports))
    return Branch(jaxpr, [eqns[i] for i in outside], segments)


def run_branches(branches: Sequence[Branch], index: Any, *operands: Any) -> list[Any]:
    """The results of a ``cond`` whose branches are cut at their ETP equations."""
    envs = [versions.start_env(branch.jaxpr, operands) for branch in branches]
    for branch, env in zip(branches, envs, strict=True):
        run_equations(branch.outside, env)
    for n in range(max(len(branch.segments) for branch in branches) - 1):
        stage = {k: b.segments[n] for k, b in enumerate(branches) if n < len(b.segments) - 1}
        taken = [partial(_exports, stage, envs, k) for k in range(len(branches))]
        exported = iter(jax.lax.switch(index, taken))
        for k, segment in stage.items():
            segment.operate(exported, envs[k])
    ends = [partial(b.segments[-1].run, env) for b, env in zip(branches, envs, strict=True)]
    return jax.lax.switch(index, ends)


def _exports(stage: Mapping[int, Segment], envs: Sequence[Env], taken: int) -> list[Any]:
    """The exports of the segments of one stage when the branch of number ``taken`` is."""
    found = (s.run(envs[k]) if k == taken else s.skip() for k, s in stage.items())
    return [value for exports in found for value in exports]
