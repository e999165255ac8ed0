# SPDX-License-Identifier: Apache-2.0
"""Every value of small layers as one more state of each layer below them (``downstream='exact'``).

With ``u`` the values of all small groups above a group ``g``, what a position ``p`` of ``g`` has
done to each of them is one more state of that position,

    q'[j, p] = sum_k J[j, k] q[k, p] + C[j, p] h'[p] + C_old[j, p] h[p],

with ``J``, ``C`` and ``C_old`` the derivatives of the new ``u_j`` in the old ``u_k`` and in the new
and the old values of ``g``, along all paths of a step through ``u``. In this step ``u_j`` keeps its
value; of ``g``, it has the derivative of ``sum_p q'[j, p]``, and of its own old values and
parameters the one it had. For that, equations that lead to new values of a small group are run once
more, with values of all other groups as constants.

An operation that leads to ``u`` through another one alone, of a layer without states below it say,
is below ``u`` in the same way: ``h'`` is its result then, and there is no ``h``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.types import Path
from ...base.versions import Atom, Var
from ...jaxprs.credit import with_credit
from ...jaxprs.run import Slice
from ..contexts import Read, plan_backward
from ..groups import member_of
from ..module_info import ModuleInfo, filter_slot
from .record import ExactCredit, Key, Member, filter_path, values_of

#: How many reverse sweeps are run together.
TOGETHER = 64

PLAIN = "plain"


def exact_step(credit: ExactCredit) -> tuple[ModuleInfo, ExactCredit]:
    """The step with every value of small groups as a state of each group below them.

    With it comes the record that knows the ``entries``.
    """
    info, filters = credit.minfo, credit.filters
    inputs = info.jaxpr.in_avals
    names: list[tuple[tuple[Key, Path], Var]] = []

    def run(*values: Any) -> list[Any]:
        old = dict(zip(filters, values[len(inputs) :], strict=True))
        one = _Run(credit, values[: len(inputs)], old)
        outputs = one.outputs()
        names[:] = one.entries
        return [*outputs, *one.entries.values()]

    avals = [*inputs, *filters.values()]
    with versions.types_of(avals):
        jaxpr = versions.make_jaxpr(run, *avals)
    count = len(info.jaxpr.outvars) + len(filters)
    entries: dict[tuple[Key, Path], dict[Var, Atom]] = {name: {} for name in filters}
    for (name, var), atom in zip(names, jaxpr.outvars[count:], strict=True):
        entries[name][var] = atom
    jaxpr = versions.with_outvars(jaxpr, jaxpr.outvars[:count])
    first = sum(len(slot.leaves) for slot in info.slots)
    added = [
        filter_slot(filter_path(i), path, kind, first + i, steps_along=0)
        for i, ((_, path), kind) in enumerate(filters.items())
    ]
    step = replace(info, jaxpr=jaxpr, slots=(*info.slots, *added))
    return step, replace(credit, entries=entries)


class _Run:
    """One run of that step, each equation in the contexts in which it is needed.

    A context is a small group whose new values an equation leads to, by number; an operation
    below one, by its result; or ``PLAIN``.
    """

    def __init__(
        self, credit: ExactCredit, inputs: Sequence[Any], old: Mapping[tuple[Key, Path], Any]
    ) -> None:
        self.credit, self.info, self.old = credit, credit.minfo, old
        self.new: dict[tuple[Key, Path], Any] = {}
        self.entries: dict[tuple[tuple[Key, Path], Var], Any] = {}
        self.values = versions.start_env(self.info.jaxpr, inputs)  # in whatever context
        self.computed: dict[tuple[Var, Hashable], Any] = {}
        self.small = [*credit.small.values()]
        self.number = {v: i for i, m in enumerate(self.small) for v in (m.old, m.new)}
        self.olds = {v: g.index for g in credit.groups for v in g.hidden_invars}
        self.news = member_of(credit.groups)
        self.operations = {
            self.info.producers[y]: r for y, r in credit.operations.items() if y in credit.above
        }
        ends = {*self.news, *(y for y in credit.above if not isinstance(y, int))}
        self.moving = self.info.credit(
            dict.fromkeys(self.olds, frozenset({0})), emits=dict.fromkeys(ends, frozenset({0}))
        )

    def outputs(self) -> list[Any]:
        """The outputs of the step, and the new values of the filters."""
        info, own = self.info, {m.new: m for m in self.small}
        slots = (slot for slot in info.slots if slot.path in self.credit.small)
        places = {info.num_out + i for slot in slots for i in slot.leaves}
        reads = [
            self.read(atom, own[atom].group.index if k in places else PLAIN)
            for k, atom in enumerate(info.jaxpr.outvars)
        ]
        below = (Read(r.eqn.outvars[0], r.eqn.outvars[0]) for r in self.operations.values())
        steps = [*plan_backward(info.eqns, [*reads, *below], self.operands, PLAIN)]
        for step in reversed(steps):
            eqn = info.eqns[step.eqn]
            results = versions.bind_equation(eqn, [self.value(ref) for ref in step.operands])
            for var, result in zip(eqn.outvars, results, strict=True):
                self.computed[var, step.context] = result
                self.values.setdefault(var, result)
                if var in own and own[var].group.index == step.context:
                    with versions.at_source(eqn):
                        self.take(own[var])
        return [*map(self.value, reads), *(self.new[name] for name in self.old)]

    def operands(self, i: int, context: Hashable) -> tuple[Read, ...]:
        """What an equation reads in a context.

        An operation that is below a group has constant parameters on the way to one, and a constant
        input where its parameters have none.
        """
        eqn, operation = self.info.eqns[i], self.operations.get(i)
        if operation is None or context == PLAIN:
            return tuple(self.read(atom, context) for atom in eqn.invars)
        trained = {operand.position for operand in operation.operands if operand.leaves}
        itself = context in eqn.outvars
        return tuple(
            self.read(a, PLAIN)._replace(stop=(k in trained) != itself)
            if itself or k in trained
            else self.read(a, context)
            for k, a in enumerate(eqn.invars)
        )

    def read(self, atom: Atom, context: Hashable) -> Read:
        """Values of small groups with their credit in ``PLAIN``; of other groups as constants."""
        if not versions.is_var(atom):
            return Read(atom)
        number = self.number.get(atom) if context == PLAIN else None
        given = atom not in self.info.producers
        owner = (self.olds if given else self.news).get(atom)
        stop = owner is not None and context not in (PLAIN, owner)
        if given:
            return Read(atom, None, number, stop)
        if owner is not None:
            home = owner if atom in self.number else PLAIN
            return Read(atom, home, number, stop)
        return Read(atom, context if self.moving.get(atom) else PLAIN)

    def value(self, ref: Read) -> Any:
        if not versions.is_var(ref.atom):
            return ref.atom.val
        var = ref.atom
        found = self.values[var] if ref.context is None else self.computed[var, ref.context]
        if ref.perturb is not None:
            found = self.with_credit(var, found, self.small[ref.perturb])
        return jax.lax.stop_gradient(found) if ref.stop else found

    def with_credit(self, var: Var, value: Any, member: Member) -> Any:
        """A value of a small group with the derivative that it has of groups below, too."""
        held = self.new if var is member.new else self.old
        if (var, "credit") not in self.computed:
            below = [q for (_, path), q in held.items() if path == member.path]
            of = sum((self.credit.total(member, q) for q in below), value)
            self.computed[var, "credit"] = with_credit(value, of)
        return self.computed[var, "credit"]

    def take(self, member: Member) -> None:
        """Move on the filters of a new value."""
        hold = jax.lax.stop_gradient
        for (key, path), way in self.credit.ways.items():
            if path != member.path:
                continue
            free = [hold(self.values[v]) for v in way.free]
            ins = [hold(self.values[v]) for v in way.ins]
            like = self.credit.filters[key, path]
            rows = self.rows(member, way, free, ins)
            for v, row in zip(way.ins, rows, strict=True):
                self.entries[(key, path), v] = hold(self.laid(key, v, row, like.dtype))
            terms = (self.term(key, v, self.entries[(key, path), v]) for v in way.ins)
            zeros = jnp.zeros(like.shape, like.dtype)
            of = sum((jnp.asarray(term, like.dtype) for term in terms), zeros)
            self.new[key, path] = with_credit(zeros, of)

    def rows(self, member: Member, way: Slice, free: list[Any], ins: list[Any]) -> Any:
        """The derivatives [n, ..] of each value of a small group in what leads to it."""
        if not ins:
            return []
        new, pull = jax.vjp(lambda *ins: way.run(*free, *ins)[0], *ins)
        examples = self.credit.examples(member)

        def row(one: Any) -> Any:
            return pull(member.laid(jnp.broadcast_to(one, (examples, *one.shape))))

        count = values_of([member], self.credit.by_example)
        return versions.mapped(row, jnp.eye(count, dtype=new.dtype), TOGETHER)

    def laid(self, key: Key, var: Var, rows: Any, dtype: Any) -> Any:
        """The derivatives in a value: of one above, as a matrix [n, examples, m]."""
        above = {m.old: m for m in self.credit.members_above(key)}
        if var in above:
            rows = above[var].entries(rows, self.credit.examples(above[var]), 1)
        return rows.astype(dtype)

    def term(self, key: Key, var: Var, rows: Any) -> Any:
        """What ``q`` [n, *V] of a group or operation has of a value."""
        above = {m.old: m for m in self.credit.members_above(key)}
        if var in above:
            q = self.old[key, above[var].path]
            if self.credit.by_example:
                return jnp.einsum("jbk,kb...->jb...", rows, q)
            return jnp.tensordot(rows[:, 0], q, 1)
        below = self.credit.values_below(key)[var]
        if below is None:
            return rows * self.computed[var, var]
        context = key if var in self.number else PLAIN
        return below.summed(rows * self.value(Read(var, context if var is below.new else None)))
