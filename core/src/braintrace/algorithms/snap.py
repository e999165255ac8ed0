# SPDX-License-Identifier: Apache-2.0
"""SnAp-n: the whole Jacobian within a group, and traces cut off beyond ``n`` steps of influence.

    eps^t = mask . (D^t eps^{t-1}) + f^t (x) x^t

with the whole ``D`` of a group. An entry of ``eps`` says how a weight, by way of one element of
``y``, has influenced one position. ``mask`` keeps the positions that such an element drives
directly, and those that these reach within ``n - 1`` steps of the position graph (Menick et al.
2020, arXiv 2006.07232).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from ..executor.layout import Link
from ..executor.whole import WholeGroupsExecutor
from ..ops.operation import Arrays
from .block_algebra import apply
from .d_rtrl import ParamDimRule
from .rule import Block, Operands, Traces, add


@dataclass(frozen=True, eq=False)
class SnApRule(ParamDimRule):
    """The learning rule SnAp-n for one compiled model.

    Parameters
    ----------
    executor
        A compiled executor of whole groups.
    trace_dtype
        See :class:`ParamDimRule`.
    order
        ``n``, from 1.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.SnAp(cell, n=2)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> from braintrace.algorithms import SnApRule
    >>> isinstance(learner.rule, SnApRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["weight"].shape
    (2, 7, 4, 4)
    """

    executor: WholeGroupsExecutor
    order: int = 1

    def __post_init__(self) -> None:
        self.masks  # noqa: B018  the position graph is found when compiling, not while tracing

    @property
    def name(self) -> str:
        """What the rule is called in reports."""
        return f"SnAp-{self.order}"

    @cached_property
    def masks(self) -> tuple[np.ndarray | None, ...]:
        """Per link, which states are kept for which elements of ``y`` [S, *Y]; ``None``: all."""
        return tuple(self._mask(i) for i in range(len(self.links)))

    def _mask(self, index: int) -> np.ndarray | None:
        link, executor = self.links[index], self.executor
        whole, places = executor.whole[link.group.index], executor.places_of_y(index)
        if places is None:
            return None
        near = executor.position_graph(link.group.index) | np.eye(whole.num_mixed, dtype=bool)
        reached = np.eye(whole.num_mixed, dtype=bool)
        for _ in range(self.order - 1):
            wider = (near.astype(float) @ reached) > 0
            if np.array_equal(wider, reached):
                break
            reached = wider
        kept = reached[:, places]
        if kept.all():
            return None
        return np.tile(kept, (whole.group.num_state, *(1,) * places.ndim))

    def _masked(self, index: int, array: jax.Array) -> jax.Array:
        """``array`` [S, *E, *Y] with zeros where the trace is cut off."""
        mask = self.masks[index]
        if mask is None:
            return array
        extra = (1,) * len(self.links[index].extra)
        wide = mask.reshape(mask.shape[0], *extra, *mask.shape[1:])
        return jnp.where(wide, array, 0)

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> list[Arrays]:
        """Cotangents of the traced operands of every relation, summed over a block."""
        found = []
        for i, (link, rules) in enumerate(zip(self.links, self.rules, strict=True)):
            r = link.relation.index
            entry, signal = self._accumulated(i, link, block)
            dy = link.sum_to_y((block.jacobians.f[i] * signal).sum(1), 1)
            one = rules.operation.contract(block.jacobians.x[r], dy, operands[r])
            if traces is not None:
                one = add(one, rules.solve(entry, traces[i], operands[r]))
            found.append(one)
        return self._summed(found, operands)

    def _accumulated(self, i: int, link: Link, block: Block) -> tuple[jax.Array, jax.Array]:
        """``c^0`` [S, *E, *Y] and ``a^t`` [K, S, *E, *Y] of a link; see ``_blocks``.

        The trace is cut off element by element of ``y``, so that signals are, too.
        """
        g = link.group.index
        transition, late = block.jacobians.transition[g], block.late[g]

        def step(carried: jax.Array, now: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            total = link.to_y(now["signal"], 1) + carried
            if "transition" in now:
                matrix = link.to_y(jnp.swapaxes(now["transition"], 0, 1), 2)
                carried = apply(matrix, self._masked(i, total))
            else:
                carried = jnp.zeros_like(total)
            return (carried + link.to_y(now["late"], 1) if "late" in now else carried), total

        rows = {"signal": block.signal[g], "transition": transition, "late": late}
        known = {key: value for key, value in rows.items() if value is not None}
        start = jnp.zeros_like(link.to_y(block.signal[g][0], 1))
        return jax.lax.scan(step, start, known, reverse=True)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block, step by step: what is cut off differs from entry to entry."""
        start = self.init() if traces is None else traces
        jacobians = block.jacobians

        def one(link_index: int) -> Arrays:
            link, rules = self.links[link_index], self.rules[link_index]
            r, g = link.relation.index, link.group.index

            def step(trace: Arrays, now: Mapping[str, jax.Array]) -> tuple[Arrays, None]:
                x = now["x"][None] if "x" in now else None
                new = rules.increments(x, now["f"][None], operands[r])
                if "transition" in now:
                    moved = rules.propagate(link.to_y(now["transition"], 2), trace, operands[r])
                    new = add(new, self._cut(link_index, moved, operands))
                return self._stored(link_index, new), None

            rows = {
                "x": jacobians.x[r],
                "f": jacobians.f[link_index],
                "transition": jacobians.transition[g],
            }
            known = {key: value for key, value in rows.items() if value is not None}
            return jax.lax.scan(step, start[link_index], known)[0]

        return tuple(one(i) for i in range(len(self.links)))

    def _cut(self, i: int, trace: Arrays, operands: Operands) -> Arrays:
        """``mask . eps``: every state of the trace scaled by its own row of the mask."""
        if self.masks[i] is None:
            return trace
        link, rules = self.links[i], self.rules[i]
        y = link.relation.y_var.aval
        shape = (link.group.num_state, *link.extra, *y.shape)
        rows = self._masked(i, jnp.ones(shape, y.dtype))
        return rules.scaled(rows, trace, operands[link.relation.index])
