# SPDX-License-Identifier: Apache-2.0
"""D-RTRL that keeps the trace of the step before, and only of the states that a step reads.

Some states of a group are results that the next step does not read within the recurrence scope:
the ``h`` of an LSTM (it acts through an operation), an emitted spike. Their columns of ``D`` are
zero. With ``R`` the other states,

    eps^t = D^t[:, R] eps^{t-1}[R] + f^t (x) x^t,

so the trace of all states follows from that of ``R`` one step before and from the last step's
``x``, ``f`` and ``D``, which are of the size of the activity. Only these are kept. On ``R`` alone
the recursion is closed, so that a block moves the kept trace as in D-RTRL with ``R`` as the states.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..compiler.program import StateKind
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..executor.step import ETraceGraphExecutor
from ..jaxprs.depends import Along, program_influences
from ..ops.operation import Arrays
from ..ops.traces import trace_rules
from ..ops.traces.rules import TraceRules
from .block_algebra import Accumulated, apply, compose, suffix_products
from .d_rtrl import DRTRLRule, is_one_step
from .rule import Block, LateSignals, Operands, Traces, add


class Lagged(NamedTuple):
    """What is kept: per link the trace of ``R`` one step before, and the last step."""

    eps: tuple[Arrays, ...]
    last: StepJacobians


def remembered(executor: ETraceGraphExecutor, group: int) -> tuple[int, ...]:
    """The states of a group that the next step reads: ``R``."""
    columns = zip(*executor.passing(group), strict=True)
    return tuple(j for j, column in enumerate(columns) if any(column))


def may_lag(executor: ETraceGraphExecutor) -> bool:
    """Whether there are traces of states that no step reads, and the others may lag behind.

    What the held back step adds to the trace must not depend on the weights, which may have changed
    by the time it is added.
    """
    forgotten = any(
        len(remembered(executor, link.group.index)) < link.group.num_state
        for link in executor.links
    )
    kinds = {_kind(executor, link): link for link in executor.links}
    return forgotten and not any(_needs_weights(executor, link) for link in kinds.values())


def _kind(executor: ETraceGraphExecutor, link: Link) -> Hashable:
    """What links with the same rules and types have in common; the link, if that is not known."""
    op = executor.operation(link.relation, link.group)
    # 1, 1.0 and True are equal, and may be different operations
    params = tuple((key, value, repr(value)) for key, value in sorted(op.params.items()))
    constants = tuple((c.position, bool(c.held)) for c in link.relation.constants)
    kind = op.spec, params, op.operand_avals, op.y_aval, op.traced, constants, link.extra
    try:
        hash(kind)
    except TypeError:  # a parameter of the operation is an array, say
        return link
    return kind


def _needs_weights(executor: ETraceGraphExecutor, link: Link) -> bool:
    """Whether what a step adds to the trace of a link depends on the values of parameters.

    So do operands behind ``stop_gradient``: another operation may train what is behind them.
    """
    relation = link.relation
    operation = executor.operation(relation, link.group)
    rules = trace_rules(operation, link.extra, 1)
    places = {*operation.positions.values(), *(c.position for c in relation.constants)}
    types = {i: _type_of(relation.operands[i].aval) for i in places}
    fixed = {c.position for c in relation.constants if not c.held}
    weights = {str(i): leaf for i, leaf in types.items() if i not in fixed}
    others = {str(i): leaf for i, leaf in types.items() if i in fixed}
    x = None if relation.x_var is None else _type_of(relation.x_var.aval)
    dy = _type_of(relation.y_var.aval)

    def added(weights: dict[str, Any], others: dict[str, Any], x: Any, dy: Any) -> Any:
        known = {**weights, **others}
        operands = [known.get(str(i)) for i in range(len(relation.operands))]
        f = jnp.broadcast_to(dy, (1, 1, *link.extra, *dy.shape))
        steps = None if x is None else x[None]
        return rules.increments(steps, f, operands), operation.contract(steps, dy[None], operands)

    program = versions.make_jaxpr(added, weights, others, x, dy)
    behind = frozenset().union(*program_influences(program, Along.VALUES))
    return any(i < len(weights) for i in behind)


def _type_of(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


@dataclass(frozen=True, eq=False)
class LaggedDRTRLRule(DRTRLRule):
    """D-RTRL with traces one step behind; the same gradients as :class:`DRTRLRule`.

    Traces are a dict of arrays [R, ..] per link, empty where the link drives no state of ``R``, and
    then the last step.
    """

    @cached_property
    def kept(self) -> tuple[TraceRules | None, ...]:
        """Per link, the rules of the trace that is kept, if there is one."""
        found = []
        for i, link in enumerate(self.links):
            states = remembered(self.executor, link.group.index)
            driven = any(self.executor.driving(i)[s] for s in states)
            found.append(self.rules[i].of_states(len(states)) if driven else None)
        return tuple(found)

    def init(self) -> Traces:
        """Traces of zeros, after a last step of zeros."""
        eps = tuple(
            {} if rules is None else self._stored(i, rules.init())
            for i, rules in enumerate(self.kept)
        )
        types = self._once(self.executor.jacobian_types())
        return (*eps, jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), types))

    # --- the last step -----------------------------------------------------------------------

    @cached_property
    def _sources(self) -> dict[int, int]:
        """For each relation with an input, the first one with the same: it is held once."""
        return self.executor.sources

    def _once(self, step: StepJacobians) -> StepJacobians:
        """A step that holds every input once."""
        held = set(self._sources.values())
        return step._replace(x=tuple(x if r in held else None for r, x in enumerate(step.x)))

    def _parted(self, traces: Traces) -> Lagged:
        """Traces, with the input of every relation in the last step."""
        *eps, last = traces
        sources = (self._sources.get(r) for r in range(len(last.x)))
        x = tuple(None if source is None else last.x[source] for source in sources)
        return Lagged(tuple(eps), last._replace(x=x))

    def _read(self, group: int, array: Any, *axes: int) -> jax.Array:
        """The entries of ``R`` along axes of states."""
        for axis in axes:
            array = _taken(array, remembered(self.executor, group), axis)
        return array

    # --- gradients ---------------------------------------------------------------------------

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> list[Arrays]:
        """Gradients of a single step from the traces after it; see :class:`LearningRule`.

        They hold the step before, and this one meets the signal by itself.
        """
        late = any(e is not None for e in block.late)  # of states that are not kept, perhaps
        if traces is None or late or self.trace_dtype is not None or not is_one_step(block):
            return self.solve(traces, block, operands)
        by_group = self.accumulated(block)
        found = self.contracted(block, {g: a.signal for g, a in by_group.items()}, operands)
        return self._summed(self._with_kept(found, new, by_group, operands), operands)

    def _with_kept(
        self,
        found: Sequence[Arrays],
        eps: Sequence[Arrays],
        by_group: Mapping[int, Accumulated],
        operands: Operands,
    ) -> list[Arrays]:
        """``found`` plus what enters the first step of a block finds in the kept traces."""
        total = list(found)
        for i, (link, rules) in enumerate(zip(self.links, self.kept, strict=True)):
            g = link.group.index
            entry = by_group[g].entry
            if rules is not None and entry is not None:
                signal = link.to_y(self._read(g, entry, 0), 1)
                total[i] = add(total[i], rules.solve(signal, eps[i], operands[link.relation.index]))
        return total

    def with_entries(
        self,
        found: Sequence[Arrays],
        traces: Traces,
        entries: Mapping[int, jax.Array | None],
        operands: Operands,
    ) -> list[Arrays]:
        """``found`` plus what signals [S, *V] by group find in the traces of all states.

        They meet the last step as if it were one of the block, and then the trace before it.
        """
        if all(entry is None for entry in entries.values()):
            return list(found)
        eps, last = self._parted(traces)
        step = Block(jax.tree.map(_first, last), self._signals(entries), self._nothing)
        by_group = self.accumulated(step)
        of_last = self.contracted(step, {g: a.signal for g, a in by_group.items()}, operands)
        total = [add(a, b) for a, b in zip(found, of_last, strict=True)]
        return self._with_kept(total, eps, by_group, operands)

    @property
    def _nothing(self) -> LateSignals:
        return (None,) * len(self.executor.graph.hidden_groups)

    def _signals(self, entries: Mapping[int, jax.Array | None]) -> tuple[Any, ...]:
        """Signals [1, S, *V] of one step, by group; zeros for what is ``None``."""
        groups = {link.group.index: link.group for link in self.links}
        dtype = jnp.result_type(*(e for e in entries.values() if e is not None))
        found: list[Any] = [None] * len(self._nothing)
        for g, group in groups.items():
            entry = entries.get(g)
            shape = (1, group.num_state, *group.varshape)
            found[g] = jnp.zeros(shape, dtype) if entry is None else entry[None]
        return tuple(found)

    # --- traces ------------------------------------------------------------------------------

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block: those of its last step but one, and its last step."""
        inner = jax.tree.map(lambda v: v[:-1], block.jacobians)
        last = jax.tree.map(lambda v: v[-1], block.jacobians)
        steps = [] if traces is None else [self._parted(traces)]
        eps = tuple(
            {} if rules is None else self._stored(i, self._moved(i, rules, steps, inner, operands))
            for i, rules in enumerate(self.kept)
        )
        return (*eps, self._once(last))

    def _moved(
        self,
        i: int,
        rules: TraceRules,
        before: Sequence[Lagged],
        inner: StepJacobians,
        operands: Operands,
    ) -> Arrays:
        """The kept trace of a link after the step that is held back and those of ``inner``."""
        link = self.links[i]
        g, r = link.group.index, link.relation.index
        f = self._read(g, inner.f[i], 1)
        terms, whole = [], None
        if f.shape[0]:
            products, whole = suffix_products(self._read(g, inner.transition[g], 1, 2))
            drive = jax.vmap(apply)(link.to_y(products, 3), f)
            terms.append(rules.increments(inner.x[r], drive, operands[r]))
        for eps, last in before:
            moved = self._read(g, last.transition[g], 0, 1)
            held = self._read(g, last.f[i], 0)
            if whole is not None:
                moved, held = compose(whole, moved), apply(link.to_y(whole, 2), held)
            x = None if last.x[r] is None else last.x[r][None]
            terms.append(rules.increments(x, held[None], operands[r]))
            terms.append(rules.propagate(link.to_y(moved, 2), eps[i], operands[r]))
        return reduce(add, terms) if terms else rules.init()

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key, of all states; [B, in, out, S]."""
        link, rules = self.links[index], self.rules[index]
        g, r = link.group.index, link.relation.index
        (eps, last), operands = self._parted(traces), self._operands()[r]
        x = None if last.x[r] is None else last.x[r][None]
        trace = rules.increments(x, last.f[index][None], operands)
        if eps[index]:
            moved = link.to_y(jnp.asarray(last.transition[g]), 2)
            trace = add(trace, rules.propagate(moved, self._spread(index, eps[index]), operands))
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in trace.items()}

    def held_by(self, traces: Traces, index: int) -> Arrays:
        """What is held for a link: the kept trace, or the factor of the last step."""
        return traces[index] or {"f": traces[-1].f[index]}

    def _operands(self) -> Operands:
        """Values of the operands, from the parameters as they are."""
        slots = self.executor.graph.module_info.slots_of(StateKind.PARAM)
        return self.executor.operand_values({slot.path: slot.state.value for slot in slots})

    def _spread(self, index: int, eps: Arrays) -> Arrays:
        """The kept trace of a link among zeros for the other states."""
        link = self.links[index]
        states = remembered(self.executor, link.group.index)
        zeros = {key: jnp.zeros_like(leaf[0]) for key, leaf in eps.items()}
        return {
            key: jnp.stack(
                [
                    leaf[states.index(s)] if s in states else zeros[key]
                    for s in range(link.group.num_state)
                ]
            )
            for key, leaf in eps.items()
        }


def _first(array: jax.Array) -> jax.Array:
    return array[None]


def _taken(array: jax.Array, indices: Sequence[int], axis: int) -> jax.Array:
    """Some indices along an axis, by slices."""
    parts = [jax.lax.slice_in_dim(array, k, k + 1, axis=axis) for k in indices]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
