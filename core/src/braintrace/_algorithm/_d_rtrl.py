# SPDX-License-Identifier: Apache-2.0
"""D-RTRL: parameter-dimension traces with the diagonal of the transition.

Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w; blocked evaluation after
Schmidhuber, Neural Computation 4:243, 1992.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from .._execute import ETraceGraphExecutor
from .._rules import Arrays, TraceRules, trace_rules
from ._blocks import accumulate, apply, suffix_products
from ._rule import Block, LearningRule, Operands, Traces, add


@dataclass(frozen=True, eq=False)
class ParamDimRule(LearningRule):
    """The learning rule D-RTRL for one compiled model: pure ``init``, ``gradient``, ``update``.

    Parameters
    ----------
    executor
        A compiled executor.
    trace_dtype
        Dtype in which traces are kept; ``None``: that of the operation's output.
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

    def init(self) -> Traces:
        """Traces of zeros, one dict per link."""
        return tuple(self._stored(i, rules.init()) for i, rules in enumerate(self.rules))

    @cached_property
    def _dtypes(self) -> tuple[Any, ...]:
        """Dtypes in which traces are kept."""
        shapes = jax.eval_shape(lambda: tuple(rules.init() for rules in self.rules))
        return jax.tree.map(lambda v: self.trace_dtype or v.dtype, shapes)

    def _stored(self, link: int, trace: Arrays) -> Arrays:
        return {key: leaf.astype(self._dtypes[link][key]) for key, leaf in trace.items()}

    def gradient(self, traces: Traces | None, block: Block, operands: Operands) -> list[Arrays]:
        """Cotangents of the traced operands of every relation, summed over a block."""
        by_group = {
            g: accumulate(block.jacobians.transition[g], block.signal[g], block.late[g])
            for g in dict.fromkeys(link.group.index for link in self.links)
        }
        total: dict[int, Arrays] = {}
        for i, (link, rules) in enumerate(zip(self.links, self.rules, strict=True)):
            r = link.relation.index
            accumulated = by_group[link.group.index]
            weighted = (block.jacobians.f[i] * link.to_y(accumulated.signal, 2)).sum(1)
            found = rules.operation.contract(
                block.jacobians.x[r], link.sum_to_y(weighted, 1), operands[r]
            )
            if traces is not None and accumulated.entry is not None:
                entry = link.to_y(accumulated.entry, 1)
                found = add(found, rules.solve(entry, traces[i], operands[r]))
            weights = rules.operation.weights(operands[r])
            found = {key: leaf.astype(weights[key].dtype) for key, leaf in found.items()}
            total[r] = add(total[r], found) if r in total else found
        return [total[r] for r in sorted(total)]

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
                new.append(self._stored(i, rules.increments(x, f[-1:], operands[r])))
                continue
            suffix, whole = found
            trace = rules.increments(x, jax.vmap(apply)(link.to_y(suffix, 3), f), operands[r])
            if traces is not None:
                trace = add(trace, rules.propagate(link.to_y(whole, 2), traces[i], operands[r]))
            new.append(self._stored(i, trace))
        return tuple(new)

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key; [B, in, out, S] for a dense product of a batch."""
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in traces[index].items()}
