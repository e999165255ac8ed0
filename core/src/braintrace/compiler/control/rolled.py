# SPDX-License-Identifier: Apache-2.0
"""Long loops around ETP operations: they stay loops, with their operations beside them.

An ETP operation ``y_k = op(x_k, w)`` in iteration ``k`` of a ``scan`` is taken out of it, for all
iterations at once. Its results are read by a loop without operations, and its inputs are computed
by another one:

    y^    = the values of all y_k                 the loop as it is, up to the last x
    x     = all x_k, from y^ in the place of y    a loop without operations
    y     = op(x, w)                              the operation, repeated for each k
    out   = the results, from y                   a loop without operations

The first loop is there only if some ``x_k`` depends on an earlier ``y_j``. What is computed is the
same, and so is every derivative. A path from ``y_j`` to the results crosses some operations, and
last of all one of iteration ``k``: the part of it behind that one is in the last loop, the one in
front of that in the second, and what is before in the first, once each. So paths are near, cross an
operation or are those of the recurrence scope exactly as if the loop were written out.

Where an operation's ``x`` does not change from iteration to iteration, neither does its ``y``, and
it stands in front of the loop. Its weights may not change: one trace is kept for all iterations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from ...base import versions
from ...base.versions import Atom, Jaxpr, JaxprEqn, Var
from ...jaxprs.depends import Along, depends, slice_to
from ...jaxprs.run import etp_equations, read, run_equations
from ...ops.repeated import repeat

Values = Mapping[Var, Any]


@dataclass(frozen=True, eq=False)
class Rolled:
    """A ``scan`` equation, and its body without calls and with all ETP operations in the open."""

    eqn: JaxprEqn
    body: Jaxpr

    @property
    def counts(self) -> tuple[int, int]:
        """How many inputs of the body are constants, and how many are carried."""
        return versions.scan_counts(self.eqn)

    @cached_property
    def operations(self) -> dict[int, JaxprEqn]:
        return {i: self.body.eqns[i] for i in etp_equations(self.body.eqns)}

    @cached_property
    def standing(self) -> set[int]:
        """Carried values, by number, that every iteration hands on as they are."""
        consts, carried = self.counts
        pairs = zip(self.body.invars[consts:], self.body.outvars[:carried], strict=False)
        return {k for k, (var, out) in enumerate(pairs) if var is out}

    @cached_property
    def changing(self) -> frozenset[Var]:
        """Variables of the body that need a row or a changing carried value to be computed."""
        rest = self.body.invars[self.counts[0] :]
        seeds = {var: frozenset({True}) for k, var in enumerate(rest) if k not in self.standing}
        return frozenset(depends(self.body.eqns, seeds, along=Along.EQUATIONS))

    @cached_property
    def moving(self) -> dict[int, JaxprEqn]:
        """The operations whose input changes from iteration to iteration."""
        return {i: e for i, e in self.operations.items() if self._changes(e.outvars[0])}

    @cached_property
    def inputs(self) -> tuple[Var, ...]:
        """Their inputs, each once."""
        found = (e.invars[e.primitive.spec.x_invar_index] for e in self.moving.values())
        return tuple(dict.fromkeys(found))

    def _changes(self, atom: Atom) -> bool:
        return versions.is_var(atom) and atom in self.changing

    @cached_property
    def outside(self) -> list[JaxprEqn]:
        """Equations that are run in front of the loop: the same in every iteration."""
        return [eqn for eqn in self.body.eqns if not any(map(self._changes, eqn.outvars))]

    @cached_property
    def recurrent(self) -> list[Var]:
        """Results of operations that some input depends on, in the same or a later iteration."""
        eqns, _ = self._needed(self.inputs, ())
        return [e.outvars[0] for i, e in self.moving.items() if i in eqns]

    def why_not(self) -> str | None:
        """Why the operations cannot be taken out, if so."""
        if self.body.effects:
            return "what it prints or calls back would happen more than once"
        for eqn in self.operations.values():
            x = eqn.primitive.spec.x_invar_index
            if any(self._changes(a) for k, a in enumerate(eqn.invars) if k != x):
                return (
                    f"a weight of {eqn.primitive.name!r} changes from iteration to iteration, so "
                    "that its iterations have no trace in common"
                )
        crossed = [e.primitive for e in self.moving.values() if e.outvars[0] in self.recurrent]
        if through := [p.name for p in crossed if p.spec.gradient_enabled]:
            return f"the input of {through[0]!r}, which is gradient-enabled, depends on its result"
        return None

    def __call__(self, *operands: Any) -> list[Any]:
        """The results of the loop."""
        consts, carried = self.counts
        env = versions.constants(self.body)
        known = *range(consts), *(consts + k for k in self.standing)
        env.update((self.body.invars[i], operands[i]) for i in known)
        run_equations(self.outside, env)
        rest, results = operands[consts:], self.body.outvars[carried:]
        _, early = self._run(env, rest, self.recurrent, {})
        before = dict(zip(self.recurrent, early, strict=True))
        _, found = self._run(env, rest, self.inputs, before)
        rows = dict(zip(self.inputs, found, strict=True))
        outputs = {e.outvars[0]: self._repeated(e, rows, env) for e in self.moving.values()}
        last, ys = self._run(env, rest, results, outputs, range(carried))
        return [*last, *ys]

    def _repeated(self, eqn: JaxprEqn, rows: Values, env: Values) -> Any:
        """The results of an operation in all iterations."""
        operands = [rows[a] if a in rows else read(dict(env), a) for a in eqn.invars]
        with versions.at_source(eqn):
            return repeat(eqn.primitive, operands, eqn.primitive.get_bind_params(eqn.params))

    def _run(
        self,
        env: Values,
        operands: Sequence[Any],
        targets: Sequence[Atom],
        given: Values,
        carries: Iterable[int] = (),
    ) -> tuple[list[Any], list[Any]]:
        """Last values of some carries, and rows of the targets.

        ``given`` are rows of variables; ``env`` has the values of what does not change.
        """
        if not targets and not carries:
            return [], []
        consts, carried = self.counts
        body, (indices, carries) = self.body, self._needed(targets, given, carries)
        eqns = [body.eqns[i] for i in indices]
        held = [body.invars[consts + k] for k in carries]
        atoms = *targets, *(a for e in eqns for a in e.invars), *(body.outvars[k] for k in carries)
        read_here = set(filter(versions.is_var, atoms))
        xs = dict(zip(body.invars[consts + carried :], operands[carried:], strict=True))
        xs = {var: value for var, value in {**xs, **given}.items() if var in read_here}

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            inside = (
                dict(env) | dict(zip(held, carry, strict=True)) | dict(zip(xs, now, strict=True))
            )
            run_equations(eqns, inside)
            return [read(inside, body.outvars[k]) for k in carries], [
                read(inside, a) for a in targets
            ]

        how = {name: self.eqn.params[name] for name in ("length", "reverse")}
        return jax.lax.scan(step, [operands[k] for k in carries], [*xs.values()], **how)

    def _needed(
        self, targets: Sequence[Atom], given: Iterable[Var], carries: Iterable[int] = ()
    ) -> tuple[list[int], list[int]]:
        """Equations to run in every iteration, and numbers of carries to hold, for targets."""
        body, (consts, carried) = self.body, self.counts
        known, held = {*given}, {*carries}

        def open_to(atom: Atom) -> bool:
            return self._changes(atom) and atom not in known

        while True:
            wanted = [a for a in (*targets, *(body.outvars[k] for k in held)) if open_to(a)]
            eqns = slice_to(
                body.eqns, wanted, lambda i, eqn, k: open_to(eqn.invars[k]), Along.EQUATIONS
            )
            seen = {*wanted, *(a for i in eqns for a in body.eqns[i].invars if open_to(a))}
            more = {k for k in range(carried) if body.invars[consts + k] in seen}
            if more <= held:
                return eqns, sorted(held)
            held |= more
