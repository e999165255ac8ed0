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

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..executor.executor import Executor
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..jaxprs.depends import Along, program_influences
from ..ops.operation import Arrays
from ..ops.traces import trace_rules
from ..ops.traces.base import TraceRules
from .base import Block, Cotangents, Entries, OldSignals, Operands, ParameterTraces, Traces, add
from .block_algebra import apply, compose, suffix_products
from .d_rtrl import ParamDimRule


def remembered(executor: Executor, group: int) -> tuple[int, ...]:
    """The states of a group that the next step reads: ``R``."""
    columns = zip(*executor.passing(group), strict=True)
    return tuple(j for j, column in enumerate(columns) if any(column))


def may_lag(executor: Executor) -> bool:
    """Whether there are traces of states that no step reads, and the others may lag behind.

    What the held back step adds to the trace must not depend on the weights, which may have changed
    by the time it is added.
    """
    if all(len(remembered(executor, g.index)) == g.num_state for g in executor.driven):
        return False
    kinds = {_kind(link): link for link in executor.links}
    return not any(map(_needs_weights, kinds.values()))


def _kind(link: Link) -> Hashable:
    """What links with the same rules and types have in common; the link, if that is not known."""
    op = link.operation
    # 1, 1.0 and True are equal, and may be different operations
    params = tuple((key, value, repr(value)) for key, value in sorted(op.params.items()))
    constants = tuple((c.position, bool(c.held)) for c in link.relation.constants)
    kind = op.spec, params, op.operand_avals, op.y_aval, op.traced, constants, link.extra
    try:
        hash(kind)
    except TypeError:  # a parameter of the operation is an array, say
        return link
    return kind


def _needs_weights(link: Link) -> bool:
    """Whether what a step adds to the trace of a link depends on the values of parameters.

    So do operands behind ``stop_gradient``: another operation may train what is behind them.
    """
    operation = link.operation
    rules = trace_rules(operation, link.extra, 1)
    fixed = {c.position for c in link.relation.constants if not c.held}
    avals: list[Any] = list(operation.operand_avals)
    if operation.spec.x_invar_index is not None:
        avals[operation.spec.x_invar_index] = None

    def added(operands: Sequence[Any], x: Any, dy: Any) -> Any:
        f = jnp.broadcast_to(dy, (1, 1, *link.extra, *dy.shape))
        steps = None if x is None else x[None]
        return rules.increments(steps, f, operands), operation.contract(steps, dy[None], operands)

    program = versions.make_jaxpr(added, avals, operation.x_aval, operation.y_aval)
    behind = frozenset().union(*program_influences(program, Along.VALUES))
    inputs = (i for i, aval in enumerate(avals) if aval is not None)
    return any(number in behind and i not in fixed for number, i in enumerate(inputs))


@dataclass(frozen=True, eq=False)
class LaggedDRTRLRule(ParameterTraces):
    """D-RTRL with traces one step behind; the same gradients as of :class:`ParamDimRule`.

    Traces are a dict of arrays [R, ..] per link, empty where the link drives no state of ``R``, and
    then the last step, which holds every input once.
    """

    @cached_property
    def rule(self) -> ParamDimRule:
        """D-RTRL, which has no traces here."""
        return ParamDimRule(self.executor, self.trace_dtype, of_model=True)

    @property
    def name(self) -> str:
        return self.rule.name

    @cached_property
    def kept(self) -> tuple[TraceRules | None, ...]:
        """Per link, the rules of the trace that is kept, if there is one."""
        found = []
        for i, (link, rules) in enumerate(zip(self.links, self.rules, strict=True)):
            states = remembered(self.executor, link.group.index)
            driven = any(self.executor.driving(i)[s] for s in states)
            found.append(rules.of_states(len(states)) if driven else None)
        return tuple(found)

    def init(self) -> Traces:
        """Traces of zeros, after a last step of zeros."""
        eps = tuple(
            {} if rules is None else self.stored(i, rules.init())
            for i, rules in enumerate(self.kept)
        )
        types = self._once(self.executor.jacobian_types)
        return (*eps, jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), types))

    def _once(self, step: StepJacobians) -> StepJacobians:
        """A step that holds every input once."""
        held = {*self.executor.sources.values()}
        return step._replace(x=tuple(x if r in held else None for r, x in enumerate(step.x)))

    def _last(self, traces: Traces) -> Block:
        """The last step, with the input of every relation, as a block without signals."""
        last, sources = traces[-1], self.executor.sources
        x = tuple(last.x[sources[r]] if r in sources else None for r in range(len(last.x)))
        none = (None,) * len(self.executor.groups)
        return Block(jax.tree.map(lambda v: v[None], last._replace(x=x)), none, none)  # type: ignore[arg-type]

    def _read(self, group: int, array: Any, *axes: int) -> jax.Array:
        """The entries of ``R`` along axes of states."""
        for axis in axes:
            array = _taken(array, remembered(self.executor, group), axis)
        return array

    # --- gradients ---------------------------------------------------------------------------

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        found, entries = self.rule.of_block(block, operands)
        if traces is not None:
            found = self._with_all(found, traces, entries, operands)
        return self.summed(found, operands)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        zeros, entries = self.nothing(operands), dict(enumerate(signal))
        return self.summed(self._with_all(zeros, traces, entries, operands), operands)

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> Cotangents:
        """Gradients of a single step from the traces after it; see :class:`LearningRule`.

        They hold the step before, and this one meets the signal by itself.
        """
        of_old = any(e is not None for e in block.old_signal)  # of states not kept, perhaps
        if traces is None or of_old or not self.rule.reads_new(block):
            return self.solve(traces, block, operands)
        found, entries = self.rule.of_block(block, operands)
        return self.summed(self._with_kept(found, new, entries, operands), operands)

    def _with_kept(
        self, found: Cotangents, traces: Traces, entries: Entries, operands: Operands
    ) -> Cotangents:
        """``found`` plus what enters the first step of a block finds in the kept traces."""
        read = {
            g: self._read(g, entry, 0)
            for g, entry in entries.items()
            if entry is not None and remembered(self.executor, g)
        }
        return self.with_entries(found, traces, read, operands, self.kept)

    def _with_all(
        self, found: Cotangents, traces: Traces, entries: Entries, operands: Operands
    ) -> Cotangents:
        """``found`` plus what signals find in the traces of all states.

        They meet the last step as if it were one of the block, and then the trace before it.
        """
        known = [entry for entry in entries.values() if entry is not None]
        if not known:
            return found
        dtype, signal = jnp.result_type(*known), []
        for group in self.executor.groups:
            entry = entries.get(group.index)
            shape = (1, group.num_state, *group.varshape)
            signal.append(jnp.zeros(shape, dtype) if entry is None else entry[None])
        step = self._last(traces)._replace(signal=tuple(signal))
        of_last, before = self.rule.of_block(step, operands)
        return self._with_kept(list(map(add, found, of_last)), traces, before, operands)

    # --- traces ------------------------------------------------------------------------------

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block: those of its last step but one, and its last step."""
        inner = block._replace(jacobians=jax.tree.map(lambda v: v[:-1], block.jacobians))
        eps = tuple(
            {} if rules is None else self.stored(i, self._moved(i, traces, inner, operands))
            for i, rules in enumerate(self.kept)
        )
        return (*eps, self._once(jax.tree.map(lambda v: v[-1], block.jacobians)))

    def _moved(self, i: int, traces: Traces | None, inner: Block, operands: Operands) -> Arrays:
        """The kept trace of a link after the step that is held back and those of ``inner``."""
        link, rules = self.links[i], self.kept[i] or self.rules[i]
        g, r = link.group.index, link.relation.index
        f = self._read(g, inner.jacobians.f[i], 1)
        terms, whole = [], None
        if f.shape[0]:
            products, whole = suffix_products(self._read(g, inner.jacobians.transition[g], 1, 2))
            drive = jax.vmap(apply)(link.to_y(products, 3), f)
            terms.append(rules.increments(inner.jacobians.x[r], drive, operands[r]))
        if traces is not None:
            last = self._last(traces).jacobians
            moved = self._read(g, traces[-1].transition[g], 0, 1)
            drive = self._read(g, traces[-1].f[i], 0)
            if whole is not None:
                moved, drive = compose(whole, moved), apply(link.to_y(whole, 2), drive)
            terms.append(rules.increments(last.x[r], drive[None], operands[r]))
            terms.append(rules.propagate(link.to_y(moved, 2), traces[i], operands[r]))
        return reduce(add, terms) if terms else rules.init()

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key, of all states; [B, in, out, S]."""
        link, last = self.links[index], self._last(traces)
        params = {weight.path: state.value for state, weight in self.executor.weights.items()}
        operands = self.executor.operand_values(params)
        trace = self.rule.increments(index, last, last.jacobians.f[index], operands)
        if traces[index]:
            moved = link.to_y(jnp.asarray(traces[-1].transition[link.group.index]), 2)
            spread = self._spread(index, traces[index])
            held = operands[link.relation.index]
            trace = add(trace, self.rules[index].propagate(moved, spread, held))
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in trace.items()}

    def _spread(self, index: int, eps: Arrays) -> Arrays:
        """The kept trace of a link among zeros for the other states."""
        group = self.links[index].group
        places = jnp.array(remembered(self.executor, group.index))
        return {
            key: jnp.zeros((group.num_state, *leaf.shape[1:]), leaf.dtype).at[places].set(leaf)
            for key, leaf in eps.items()
        }

    def held_by(self, traces: Traces, index: int) -> Arrays:
        """What is held for a link: the kept trace, or the factor of the last step."""
        return traces[index] or {"f": traces[-1].f[index]}


def _taken(array: jax.Array, indices: Sequence[int], axis: int) -> jax.Array:
    """Some indices along an axis, by slices."""
    parts = [jax.lax.slice_in_dim(array, k, k + 1, axis=axis) for k in indices]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
