# SPDX-License-Identifier: Apache-2.0
"""D-RTRL whose traces lag behind: those of states that no step reads for long are not kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import sum_dtype, widened
from ..executor.executor import Executor
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..jaxprs.depends import Along, program_influences
from ..ops.operation import Arrays
from ..ops.traces import trace_rules
from ..ops.traces.bands import Bands
from ..ops.traces.base import zeros_of
from .base import Block, Cotangents, Entries, Operands, Traces, add
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
    return not needs_weights(executor)


def needs_weights(executor: Executor) -> bool:
    """Whether what a step adds to a trace depends on the values of parameters."""
    kinds = {_kind(link): link for link in executor.links}
    return any(map(_needs_weights, kinds.values()))


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
        steps = None if x is None else x[None]
        contracted = operation.contract(steps, dy[None], operands)
        if rules.adds_contractions and x is not None:
            return contracted
        f = jnp.broadcast_to(dy, (1, 1, *link.extra, *dy.shape))
        return rules.increments(steps, f, operands), contracted

    program = versions.make_jaxpr(added, avals, operation.x_aval, operation.y_aval)
    behind = frozenset().union(*program_influences(program, Along.VALUES))
    inputs = (i for i, aval in enumerate(avals) if aval is not None)
    return any(number in behind and i not in fixed for number, i in enumerate(inputs))


@dataclass(frozen=True, eq=False)
class LaggedDRTRLRule(ParamDimRule):
    """D-RTRL that keeps the trace of the step before, and only of the states that a step reads.

    Some states of a group are results that the next step does not read within the recurrence scope:
    the ``h`` of an LSTM (it acts through an operation), an emitted spike. Their columns of ``D``
    are zero. With ``R`` the other states,

        eps^t = D^t[:, R] eps^{t-1}[R] + f^t (x) x^t,

    so the trace of all states follows from that of ``R`` one step before and from the last step's
    ``x``, ``f`` and ``D``, which are of the size of the activity. Only these are kept. On ``R``
    alone the recursion is closed, so that a block moves the kept trace as in :class:`ParamDimRule`
    with ``R`` as the states. The gradients are the same.

    Traces are a dict of arrays [R, ..] per link, empty where the link drives no state of ``R``, and
    then the last step, which holds every input once.
    """

    adds_up_parts = True

    of_model: bool = field(default=True, kw_only=True, repr=False, metadata={"saved": False})

    def states_of(self, link: Link) -> int:
        """As many as the next step reads, if the link drives any of them."""
        driving, states = self.executor.driving(link.index), self._states(link)
        return len(states) if any(driving[s] for s in states) else 0

    def _states(self, link: Link) -> tuple[int, ...]:
        return remembered(self.executor, link.group.index)

    def read(self, link: Link, array: Any, *axes: int) -> Any:
        """The entries of ``R`` along axes of states, by slices."""
        if array is None:
            return None
        if isinstance(array, Bands):
            return array.among(self._states(link), axes[0])
        for axis in axes:
            slices = [jax.lax.slice_in_dim(array, k, k + 1, axis=axis) for k in self._states(link)]
            array = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis)
        return array

    def init(self) -> Traces:
        """Traces of zeros, after a last step of zeros."""
        types = self._once(self.executor.jacobian_types)
        zeros = jax.tree.map(lambda v: zeros_of(v.shape, sum_dtype(v.dtype))(), types)
        return (*super().init(), zeros)

    def _once(self, step: StepJacobians) -> StepJacobians:
        """A step that holds every input once."""
        first = self.executor.sources
        own = (x if first.get(r) == r else None for r, x in enumerate(step.x))
        return step._replace(x=tuple(own), transition=_by_entries(step.transition))

    def _last(self, traces: Traces) -> StepJacobians:
        """The last step as one of a block, with the input of every relation."""
        last, first = traces[-1], self.executor.sources
        x = tuple(last.x[first.get(r, r)] for r in range(len(last.x)))
        return jax.tree.map(lambda v: v[None], last._replace(x=x))

    def with_entries(
        self, found: Cotangents, traces: Traces | None, entries: Entries, operands: Operands
    ) -> Cotangents:
        """``found`` plus what signals find in the traces of all states.

        They meet the last step as if it were one of the block, and then the trace before it.
        """
        known = [entry for entry in entries.values() if entry is not None]
        if traces is None or not known:
            return list(found)
        dtype, signal = jnp.result_type(*known), []
        for group in self.executor.groups:
            entry = entries.get(group.index)
            shape = (1, group.num_state, *group.varshape)
            signal.append(jnp.zeros(shape, dtype) if entry is None else entry[None])
        last = Block(self._last(traces), tuple(signal), (None,) * len(signal))
        of_last, before = self.of_block(last, operands)
        return super().with_entries([*map(add, found, of_last)], traces, before, operands)

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> Cotangents:
        """From the traces after a single step, which lag behind: it meets the signal by itself."""
        of_old = any(e is not None for e in block.old_signal)  # of states not kept, perhaps
        if traces is None or of_old or not self.reads_new(block):
            return self.solve(traces, block, operands)
        found, entries = self.of_block(block, operands)
        return self.summed(super().with_entries(found, new, entries, operands), operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces of the last step but one, after the step held back and others, and the last."""
        moving = _by_entries(block.jacobians.transition)
        steps = jax.tree.map(lambda v: v[:-1], block.jacobians._replace(transition=moving))
        last = self._once(jax.tree.map(lambda v: v[-1], block.jacobians))
        last = widened(last, sum_dtype(jnp.float16))  # part of the trace, and no narrower than it
        if traces is not None:  # one pass over the traces; steps in half precision become wider
            steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self._last(traces), steps)
        if len(steps.f[0]):
            traces = super().update(traces, block._replace(jacobians=steps), operands)
        return (*(super().init() if traces is None else traces), last)

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key, of all states; [B, in, out, S]."""
        link = self.links[index]
        (x, f, transition), states = self._last(traces).of(link), link.group.num_state
        params = {weight.path: state.value for state, weight in self.executor.weights.items()}
        held = self.executor.operand_values(params)[link.relation.index]
        rules = self.rules[index].of_states(states)
        trace, kept = rules.increments(x, f, held), None
        if traces[index]:
            spread = rules.spread(traces[index], jnp.array(self._states(link)))
            moved = link.to_y(jnp.asarray(transition)[0], 2)
            kept = rules.propagate(moved, spread, held)
        trace = rules.joined(kept, trace)
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in trace.items()}

    def held_by(self, traces: Traces, index: int) -> Arrays:
        """What is held for a link: the kept trace, or the factor of the last step."""
        return traces[index] or {"f": traces[-1].f[index]}


def _by_entries(transition: Sequence[Any]) -> tuple[Any, ...]:
    """``D`` of every group, without what pulls signals back through it."""
    return tuple(D.by_entries if isinstance(D, Bands) else D for D in transition)
