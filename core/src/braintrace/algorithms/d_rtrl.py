# SPDX-License-Identifier: Apache-2.0
"""D-RTRL: parameter-dimension traces with the diagonal of the transition.

Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w; blocked evaluation after
Schmidhuber, Neural Computation 4:243, 1992.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import refuse_unused
from ..base.precision import sum_dtype, widened
from ..executor.executor import Executor
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..jaxprs.depends import Along, program_influences
from ..ops.operation import Arrays
from ..ops.traces import trace_rules
from .base import Block, Cotangents, Entries, OldSignals, Operands, ParameterTraces, Traces, add
from .block_algebra import accumulate, apply, meet, suffix_products


@dataclass(frozen=True, eq=False)
class ParamDimRule(ParameterTraces):
    """The learning rule D-RTRL for one compiled model: pure ``init``, ``update``, ``solve``.

    Traces are one dict per link.

    Parameters
    ----------
    executor
        A compiled executor.
    trace_dtype
        Dtype in which traces are kept; ``None``: that of the operation's output, and no narrower
        than those of its parameters and of the states, and float32.
    of_model
        Whether blocks hold the model's own Jacobians. Products with what is structurally zero in
        these are left out then, and a single step is solved from the trace after it, which can be
        written in place of the one before. A subclass that puts another ``D`` or ``f`` into a block
        leaves it at ``False``.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.D_RTRL, x, batch_size=2)
    >>> from braintrace.algorithms import ParamDimRule
    >>> isinstance(learner.rule, ParamDimRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["weight"].shape
    (2, 7, 4, 1)
    """

    of_model: bool = field(default=False, kw_only=True, repr=False, metadata={"saved": False})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        elsewhere = "of_block changes what a block holds, and the rest follows"
        refuse_unused(cls, dict.fromkeys(("accumulated", "passing", "driving"), elsewhere))

    @property
    def name(self) -> str:
        if self.executor.jacobians == "whole":
            return "RTRL within groups"
        moving = self.executor.graph.moving
        if moving is not None and moving.kappa is not None:
            return f"e-prop, kappa {moving.kappa:.3g}"
        return f"D-RTRL, {self.executor.graph.recurrence_scope} recurrence"

    @property
    def saved_as(self) -> str:
        """The name of the rule in files."""
        kind = type(self)
        return "DRTRLRule" if self.of_model and kind is ParamDimRule else kind.__name__

    def init(self) -> Traces:
        return tuple(map(self.zeros, self.links))

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        found, entries = self.of_block(block, operands)
        return self.summed(self.with_entries(found, traces, entries, operands), operands)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        nothing: Cotangents = [{} for _ in self.links]
        entries = dict(enumerate(signal))
        return self.summed(self.with_entries(nothing, traces, entries, operands), operands)

    def of_block(self, block: Block, operands: Operands) -> tuple[Cotangents, Entries]:
        """Cotangents per link from the steps of a block, and what is left to meet the traces."""
        signals, entries = {}, {}
        for g in (group.index for group in self.executor.driven):
            passing = self.executor.passing(g) if self.of_model else None
            rows = block.jacobians.transition[g], block.signal[g], block.old_signal[g]
            signals[g], entries[g] = accumulate(*rows, passing)
        return [self.contracted(link, block, signals, operands) for link in self.links], entries

    def contracted(
        self, link: Link, block: Block, signals: Mapping[int, jax.Array], operands: Operands
    ) -> Arrays:
        """``sum_t xy_to_dw(x^t, sum_s f^t a^t)`` of a link, with ``a`` [K, S, *V] by group."""
        x, f, _ = block.jacobians.of(link)
        met = meet(f, link.to_y(signals[link.group.index], 2), self._driving(link))
        held = operands[link.relation.index]
        return link.operation.contract(x, link.sum_to_y(met, 1), held)

    def _driving(self, link: Link) -> tuple[bool, ...] | None:
        return self.executor.driving(link.index) if self.of_model else None

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> Cotangents:
        if traces is None or not self.reads_new(block):
            return self.solve(traces, block, operands)
        signals, moving = dict(enumerate(block.signal)), block.jacobians.transition
        now = {g: signal[0] for g, signal in signals.items() if moving[g] is not None}
        old = {g: signal[0] for g, signal in enumerate(block.old_signal) if signal is not None}
        found = [  # without a transition, the trace is of this step alone
            {} if k.group.index in now else self.contracted(k, block, signals, operands)
            for k in self.links
        ]
        found = self.with_entries(found, new, now, operands)
        return self.summed(self.with_entries(found, traces, old, operands), operands)

    def reads_new(self, block: Block) -> bool:
        """Whether a block is a single step, or without operations, with exact traces after it."""
        one_step = all(len(f) == 1 for f in block.jacobians.f)
        return self.of_model and self.trace_dtype is None and one_step

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        return tuple(map(self.stored, self.links, self.moved(traces, block, operands)))

    def moved(
        self, traces: Traces | None, block: Block, operands: Operands, decays: Any = None
    ) -> list[Arrays]:
        """Per link, ``P^0 . eps^0 + sum_t (P^t f^t) (x) x^t``; see :func:`suffix_products`."""
        new: list[Arrays] = []
        products: dict[int, Any] = {}
        for link, rules in zip(self.links, self.rules, strict=True):
            (x, f, transition), g = block.jacobians.of(link), link.group.index
            held, driving = operands[link.relation.index], self._driving(link) or ()
            if not rules.num_state:
                new.append({})
                continue
            if transition is None and decays is None:  # only the last step is left in the trace
                x, f = jax.tree.map(lambda v: v[-1:], (x, f))
            elif transition is None:
                f = decays.astype(sum_dtype(f.dtype)).reshape(-1, *(1,) * (f.ndim - 1)) * f
            else:
                if g not in products:
                    products[g] = suffix_products(self.read(link, transition, 1, 2), decays)
                passing = (driving,) * len(driving) if len(driving) == rules.num_state else None
                driven = jax.vmap(partial(apply, passing=passing))
                f = driven(link.to_y(products[g][0], 3), self.read(link, f, 1))
            kept = None
            if g in products and traces is not None:
                whole = link.to_y(products[g][1], 2)
                kept = rules.propagate(whole, traces[link.index], held)
            new.append(rules.joined(kept, rules.increments(x, f, held)))
        return new

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key; [B, in, out, S] for a dense product of a batch."""
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in traces[index].items()}


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

    of_model: bool = field(default=True, kw_only=True, repr=False, metadata={"saved": False})

    def states_of(self, link: Link) -> int:
        """As many as the next step reads, if the link drives any of them."""
        driving, states = self.executor.driving(link.index), self._states(link)
        return len(states) if any(driving[s] for s in states) else 0

    def _states(self, link: Link) -> tuple[int, ...]:
        return remembered(self.executor, link.group.index)

    def read(self, link: Link, array: Any, *axes: int) -> jax.Array:
        """The entries of ``R`` along axes of states, by slices."""
        for axis in axes:
            slices = [jax.lax.slice_in_dim(array, k, k + 1, axis=axis) for k in self._states(link)]
            array = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis)
        return array

    def init(self) -> Traces:
        """Traces of zeros, after a last step of zeros."""
        types = self._once(self.executor.jacobian_types)
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, sum_dtype(v.dtype)), types)
        return (*super().init(), zeros)

    def _once(self, step: StepJacobians) -> StepJacobians:
        """A step that holds every input once."""
        first = self.executor.sources
        own = (x if first.get(r) == r else None for r, x in enumerate(step.x))
        return step._replace(x=tuple(own))

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
        steps = jax.tree.map(lambda v: v[:-1], block.jacobians)
        last = self._once(jax.tree.map(lambda v: v[-1], block.jacobians))
        last = widened(last, sum_dtype(jnp.float16))  # part of the trace, and no narrower than it
        if traces is not None:  # a block of its own: joined to the others, it would copy them
            held_back = block._replace(jacobians=self._last(traces))
            traces = super().update(traces, held_back, operands)
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
            places = jnp.array(self._states(link))
            spread = {  # the kept trace among zeros for the other states
                key: jnp.zeros((states, *v.shape[1:]), v.dtype).at[places].set(v)
                for key, v in traces[index].items()
            }
            moved = link.to_y(jnp.asarray(transition)[0], 2)
            kept = rules.propagate(moved, spread, held)
        trace = rules.joined(kept, trace)
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in trace.items()}

    def held_by(self, traces: Traces, index: int) -> Arrays:
        """What is held for a link: the kept trace, or the factor of the last step."""
        return traces[index] or {"f": traces[-1].f[index]}
