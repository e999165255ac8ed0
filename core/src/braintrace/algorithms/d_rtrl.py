# SPDX-License-Identifier: Apache-2.0
"""D-RTRL: parameter-dimension traces with the diagonal of the transition.

Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w; blocked evaluation after
Schmidhuber, Neural Computation 4:243, 1992.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.cones import Pattern
from ..executor.layout import Link
from ..executor.step import ETraceGraphExecutor
from ..ops.operation import Arrays
from ..ops.traces import trace_rules
from ..ops.traces.rules import TraceRules
from .block_algebra import Accumulated, accumulate, apply, meet, suffix_products
from .rule import Block, LateSignals, LearningRule, Operands, Traces, add, by_relation


@dataclass(frozen=True, eq=False)
class ParamDimRule(LearningRule):
    """The learning rule D-RTRL for one compiled model: pure ``init``, ``update``, ``solve``.

    Parameters
    ----------
    executor
        A compiled executor.
    trace_dtype
        Dtype in which traces are kept; ``None``: that of the operation's output.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.D_RTRL(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> from braintrace.algorithms import ParamDimRule
    >>> isinstance(learner.rule, ParamDimRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["weight"].shape
    (2, 7, 4, 1)
    """

    executor: ETraceGraphExecutor
    trace_dtype: Any = None

    @cached_property
    def rules(self) -> tuple[TraceRules, ...]:
        """Per link, the rules of its trace."""
        return tuple(
            trace_rules(self.executor.operation(k.relation, k.group), k.extra, k.group.num_state)
            for k in self.links
        )

    @property
    def name(self) -> str:
        """What the rule is called in reports."""
        if self.links is not self.executor.near_links:
            return "RTRL within groups"
        return f"D-RTRL, {self.executor.graph.recurrence_scope} recurrence"

    def init(self) -> Traces:
        """Traces of zeros, one dict per link."""
        return tuple(self._stored(i, rules.init()) for i, rules in enumerate(self.rules))

    @cached_property
    def _dtypes(self) -> tuple[dict[str, Any], ...]:
        """Dtypes in which traces are kept."""
        return tuple(
            {key: self.trace_dtype or leaf.dtype for key, leaf in rules.types.items()}
            for rules in self.rules
        )

    def _stored(self, link: int, trace: Arrays) -> Arrays:
        return {key: leaf.astype(self._dtypes[link][key]) for key, leaf in trace.items()}

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> list[Arrays]:
        """Cotangents of the traced operands of every relation, summed over a block."""
        by_group = self.accumulated(block)
        found = self.contracted(block, {g: a.signal for g, a in by_group.items()}, operands)
        if traces is not None:
            entries = {g: a.entry for g, a in by_group.items()}
            found = self.with_entries(found, traces, entries, operands)
        return self._summed(found, operands)

    def passing(self, group: int) -> Pattern | None:
        """Which entries of ``D`` of the blocks are not structurally zero; ``None``: unknown.

        A subclass may put another ``D`` and another ``f`` into a block than the model's.
        """
        return None

    def driving(self, link: int) -> tuple[bool, ...] | None:
        """For which states ``f`` of the blocks is not structurally zero; ``None``: unknown."""
        return None

    def accumulated(self, block: Block) -> dict[int, Accumulated]:
        """The accumulated signals of the groups that have links."""
        transition = block.jacobians.transition
        return {
            g: accumulate(transition[g], block.signal[g], block.late[g], self.passing(g))
            for g in self._driven
        }

    @cached_property
    def _driven(self) -> tuple[int, ...]:
        """The groups that have links."""
        return tuple(dict.fromkeys(link.group.index for link in self.links))

    def contracted(
        self, block: Block, accumulated: Mapping[int, jax.Array], operands: Operands
    ) -> list[Arrays]:
        """Per link, ``sum_t xy_to_dw(x^t, sum_s f^t a^t)`` with ``a`` [K, S, *V] by group."""
        return [
            self._of_block(i, block, accumulated[link.group.index], operands)
            for i, link in enumerate(self.links)
        ]

    def _of_block(self, i: int, block: Block, signal: jax.Array, operands: Operands) -> Arrays:
        link, r = self.links[i], self.links[i].relation.index
        met = meet(block.jacobians.f[i], link.to_y(signal, 2), self.driving(i))
        dy = link.sum_to_y(met, 1)
        return self.rules[i].operation.contract(block.jacobians.x[r], dy, operands[r])

    def with_entries(
        self,
        found: Sequence[Arrays],
        traces: Traces,
        entries: Mapping[int, jax.Array | None],
        operands: Operands,
    ) -> list[Arrays]:
        """``found`` plus what signals [S, *V] by group find in traces."""
        return [
            one
            if (entry := entries.get(link.group.index)) is None
            else add(one, rules.solve(link.to_y(entry, 1), trace, operands[link.relation.index]))
            for one, link, rules, trace in zip(found, self.links, self.rules, traces, strict=True)
        ]

    def boundary(self, traces: Traces, signal: LateSignals, operands: Operands) -> list[Arrays]:
        """Cotangents of the traced operands from a signal at the hidden states as they are."""
        entries = dict(enumerate(signal))
        found = self.with_entries(self._zeros(operands), traces, entries, operands)
        return self._summed(found, operands)

    def _zeros(self, operands: Operands) -> list[Arrays]:
        return [
            {key: jnp.zeros_like(weights[key]) for key in rules.operation.traced}
            for rules, weights in zip(self.rules, self._weights(operands), strict=True)
        ]

    def _weights(self, operands: Operands) -> list[Arrays]:
        """Per link, the trainable operands."""
        pairs = zip(self.links, self.rules, strict=True)
        return [rules.operation.weights(operands[k.relation.index]) for k, rules in pairs]

    def _summed(self, found: Sequence[Arrays], operands: Operands) -> list[Arrays]:
        return by_relation(self, found, self._weights(operands))

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block."""
        products = {
            g: None if transition is None else suffix_products(transition)
            for g, transition in enumerate(block.jacobians.transition)
        }
        new = []
        for i, (link, rules) in enumerate(zip(self.links, self.rules, strict=True)):
            r = link.relation.index
            x, f = block.jacobians.x[r], block.jacobians.f[i]
            found = products[link.group.index]
            if found is None:  # D is zero: only the last step is left in the trace
                x = None if x is None else x[-1:]
                trace = rules.increments(x, f[-1:], operands[r])
            else:
                before = None if traces is None else traces[i]
                trace = rolled(link, rules, before, found, (x, f), operands[r], self.driving(i))
            new.append(self._stored(i, trace))
        return tuple(new)

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key; [B, in, out, S] for a dense product of a batch."""
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in traces[index].items()}


@dataclass(frozen=True, eq=False)
class DRTRLRule(ParamDimRule):
    """D-RTRL on blocks as the executor gives them: with the structure of the model's own Jacobians.

    The same gradients as :class:`ParamDimRule`, without products with what is structurally zero,
    and for a single step from the trace after it, which can then be written in place.
    """

    def passing(self, group: int) -> Pattern:
        """Which entries of ``D`` are not structurally zero."""
        return self.executor.passing(group)

    def driving(self, link: int) -> tuple[bool, ...]:
        """For which states ``f`` is not structurally zero."""
        return self.executor.driving(link)

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> list[Arrays]:
        """Gradients of a single step from the traces after it; see :class:`LearningRule`."""
        if traces is None or self.trace_dtype is not None or not is_one_step(block):
            return self.solve(traces, block, operands)
        found = [self._of_step(i, traces, new, block, operands) for i in range(len(self.links))]
        return self._summed(found, operands)

    def _of_step(
        self, i: int, traces: Traces, new: Traces, block: Block, operands: Operands
    ) -> Arrays:
        """``<l, eps^t> + <e, eps^{t-1}>`` of a link."""
        link, solve = self.links[i], self.rules[i].solve
        g, r = link.group.index, link.relation.index
        signal, late = block.signal[g], block.late[g]
        if block.jacobians.transition[g] is None:  # the trace is of this step alone
            found = self._of_block(i, block, signal, operands)
        else:
            found = solve(link.to_y(signal[0], 1), new[i], operands[r])
        if late is None:
            return found
        return add(found, solve(link.to_y(late[0], 1), traces[i], operands[r]))


def is_one_step(block: Block) -> bool:
    """Whether a block holds a single step, or no operation at all."""
    return all(len(f) == 1 for f in block.jacobians.f)


def rolled(
    link: Link,
    rules: TraceRules,
    trace: Arrays | None,
    products: tuple[jax.Array, jax.Array],
    drive: tuple[Any, jax.Array],
    operands: Sequence[Any],
    driving: tuple[bool, ...] | None = None,
) -> Arrays:
    """``P^0 . eps^0 + sum_t (P^t f^t) (x) x^t`` with the ``products`` P and P^0.

    ``driving`` says which states of ``f`` are not structurally zero.
    """
    suffix, whole = products
    x, f = drive
    passing = None if driving is None else (driving,) * len(driving)
    driven = partial(apply, passing=passing)
    new = rules.increments(x, jax.vmap(driven)(link.to_y(suffix, 3), f), operands)
    if trace is None:
        return new
    return add(new, rules.propagate(link.to_y(whole, 2), trace, operands))
