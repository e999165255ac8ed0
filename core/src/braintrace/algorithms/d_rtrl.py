# SPDX-License-Identifier: Apache-2.0
"""D-RTRL: parameter-dimension traces with the diagonal of the transition.

Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w; blocked evaluation after
Schmidhuber, Neural Computation 4:243, 1992.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base.errors import refuse_unused
from ..ops.operation import Arrays
from .base import Block, Cotangents, Entries, OldSignals, Operands, ParameterTraces, Traces, add
from .block_algebra import Accumulated, accumulate, apply, meet, suffix_products


@dataclass(frozen=True, eq=False)
class ParamDimRule(ParameterTraces):
    """The learning rule D-RTRL for one compiled model: pure ``init``, ``update``, ``solve``.

    Traces are one dict per link.

    Parameters
    ----------
    executor
        A compiled executor.
    trace_dtype
        Dtype in which traces are kept; ``None``: that of the operation's output.
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
        return f"D-RTRL, {self.executor.graph.recurrence_scope} recurrence"

    @property
    def saved_as(self) -> str:
        """The name of the rule in files."""
        own = self.of_model and type(self) is ParamDimRule
        return "DRTRLRule" if own else type(self).__name__

    def init(self) -> Traces:
        return tuple(self.stored(i, rules.init()) for i, rules in enumerate(self.rules))

    # --- gradients ---------------------------------------------------------------------------

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        found, entries = self.of_block(block, operands)
        if traces is not None:
            found = self.with_entries(found, traces, entries, operands)
        return self.summed(found, operands)

    def of_block(self, block: Block, operands: Operands) -> tuple[Cotangents, Entries]:
        """Cotangents per link from the steps of a block, and what is left to meet the traces."""
        by_group = {}
        for g in (group.index for group in self.executor.driven):
            passing = self.executor.passing(g) if self.of_model else None
            transition = block.jacobians.transition[g]
            by_group[g] = accumulate(transition, block.signal[g], block.old_signal[g], passing)
        found = self.contracted(block, by_group, operands)
        return found, {g: a.entry for g, a in by_group.items()}

    def contracted(
        self, block: Block, by_group: Mapping[int, Accumulated], operands: Operands
    ) -> Cotangents:
        """Per link, ``sum_t xy_to_dw(x^t, sum_s f^t a^t)`` with ``a`` [K, S, *V] by group."""
        return [
            self._contracted(i, block, by_group[link.group.index].signal, operands)
            for i, link in enumerate(self.links)
        ]

    def _contracted(self, i: int, block: Block, signal: jax.Array, operands: Operands) -> Arrays:
        link, r = self.links[i], self.links[i].relation.index
        met = meet(block.jacobians.f[i], link.to_y(signal, 2), self._driving(i))
        return link.operation.contract(block.jacobians.x[r], link.sum_to_y(met, 1), operands[r])

    def _driving(self, i: int) -> tuple[bool, ...] | None:
        return self.executor.driving(i) if self.of_model else None

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        entries = dict(enumerate(signal))
        return self.summed(
            self.with_entries(self.nothing(operands), traces, entries, operands), operands
        )

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> Cotangents:
        if traces is None or not self.reads_new(block):
            return self.solve(traces, block, operands)
        found = []
        for i, (link, rules) in enumerate(zip(self.links, self.rules, strict=True)):
            g, held = link.group.index, operands[link.relation.index]
            if block.jacobians.transition[g] is None:  # the trace is of this step alone
                one = self._contracted(i, block, block.signal[g], operands)
            else:
                one = rules.solve(link.to_y(block.signal[g][0], 1), new[i], held)
            if (old_signal := block.old_signal[g]) is not None:
                one = add(one, rules.solve(link.to_y(old_signal[0], 1), traces[i], held))
            found.append(one)
        return self.summed(found, operands)

    def reads_new(self, block: Block) -> bool:
        """Whether a block is a single step, or without operations, with exact traces after it."""
        one_step = all(len(f) == 1 for f in block.jacobians.f)
        return self.of_model and self.trace_dtype is None and one_step

    # --- traces ------------------------------------------------------------------------------

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        transitions = block.jacobians.transition
        products = [None if d is None else suffix_products(d) for d in transitions]
        new = []
        for i, link in enumerate(self.links):
            before, found = None if traces is None else traces[i], products[link.group.index]
            if found is None:  # D is zero: only the last step is left in the trace
                last = block._replace(jacobians=jax.tree.map(lambda v: v[-1:], block.jacobians))
                trace = self.increments(i, last, last.jacobians.f[i], operands)
            else:
                trace = self.rolled(i, before, found, block, operands)
            new.append(self.stored(i, trace))
        return tuple(new)

    def increments(self, i: int, block: Block, f: jax.Array, operands: Operands) -> Arrays:
        """``sum_t f^t (x) x^t`` of a link, with the inputs of a block."""
        r = self.links[i].relation.index
        return self.rules[i].increments(block.jacobians.x[r], f, operands[r])

    def rolled(
        self,
        i: int,
        trace: Arrays | None,
        products: tuple[jax.Array, jax.Array],
        block: Block,
        operands: Operands,
    ) -> Arrays:
        """``P^0 . eps^0 + sum_t (P^t f^t) (x) x^t`` with the ``products`` P and P^0."""
        (suffix, whole), link, driving = products, self.links[i], self._driving(i)
        passing = None if driving is None else (driving,) * len(driving)
        driven = jax.vmap(partial(apply, passing=passing))
        f = driven(link.to_y(suffix, 3), block.jacobians.f[i])
        new = self.increments(i, block, f, operands)
        if trace is None:
            return new
        held = operands[link.relation.index]
        return add(new, self.rules[i].propagate(link.to_y(whole, 2), trace, held))

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key; [B, in, out, S] for a dense product of a batch."""
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in traces[index].items()}
