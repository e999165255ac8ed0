# SPDX-License-Identifier: Apache-2.0
"""SnAp-n: the whole Jacobian within a group, and traces cut off beyond ``n`` steps of influence.

    eps^t = mask . (D^t eps^{t-1}) + f^t (x) x^t

with the whole ``D`` of a group. An entry of ``eps`` says how a weight, by way of one element of
``y``, has influenced one position. ``mask`` keeps the positions that such an element drives
directly, and those that these reach within ``n - 1`` steps of the position graph (Menick et al.
2020, arXiv 2006.07232).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..executor.layout import Link
from ..executor.position_graph import places_of_y, position_graph
from ..ops.operation import Arrays
from .base import Block, Cotangents, Operands, Traces, add
from .block_algebra import apply
from .d_rtrl import ParamDimRule


@dataclass(frozen=True, eq=False)
class SnApRule(ParamDimRule):
    """The learning rule SnAp-n for one compiled model.

    Parameters
    ----------
    executor
        A compiled executor with ``jacobians='whole'``.
    trace_dtype, of_model
        See :class:`ParamDimRule`.
    order
        ``n``, from 1.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(
    ...     cell, braintrace.SnAp, x, batch_size=2, n=2, downstream="step"
    ... )
    >>> from braintrace.algorithms import SnApRule
    >>> isinstance(learner.rule, SnApRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["weight"].shape
    (2, 7, 4, 4)
    """

    adds_up_parts = True

    jacobians = "whole"
    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masks  # noqa: B018  the position graph is found when compiling, not while tracing

    @property
    def name(self) -> str:
        return f"SnAp-{self.order}"

    @cached_property
    def masks(self) -> tuple[np.ndarray | None, ...]:
        """Per link, which states are kept for which elements of ``y`` [S, *Y]; ``None``: all."""
        return tuple(map(self._mask, self.links))

    def _mask(self, link: Link) -> np.ndarray | None:
        group, places = link.group, places_of_y(link)
        if places is None:
            return None
        reached = np.eye(group.num_mixed, dtype=bool)
        near = position_graph(self.executor.graph, group) | reached
        for _ in range(self.order - 1):
            wider = (near.astype(float) @ reached) > 0
            if np.array_equal(wider, reached):
                break
            reached = wider
        kept = reached[:, places]
        return None if kept.all() else np.tile(kept, (group.group.num_state, *(1,) * places.ndim))

    def _masked(self, link: Link, array: jax.Array) -> jax.Array:
        """``array`` [S, *E, *Y] with zeros where the trace is cut off."""
        mask = self.masks[link.index]
        if mask is None:
            return array
        return jnp.where(np.expand_dims(mask, (*range(1, 1 + len(link.extra)),)), array, 0)

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        found = []
        for link, rules in zip(self.links, self.rules, strict=True):
            held, (x, f, _) = operands[link.relation.index], block.jacobians.of(link)
            entry, signal = self._accumulated(link, block)
            one = link.contract(x, (f * signal).sum(1), held, self.parts)
            if traces is not None:
                own = entry, traces[link.index], held
                one = add(one, rules.solve_in_parts(*own, self.parts))
            found.append(one)
        return self.summed(found, operands)

    def _accumulated(self, link: Link, block: Block) -> tuple[jax.Array, jax.Array]:
        """``c^0`` [S, *E, *Y] and ``a^t`` [K, S, *E, *Y] of a link; see ``block_algebra``.

        The trace is cut off element by element of ``y``, so that signals are, too.
        """
        g = link.group.index

        def step(carried: jax.Array, now: Any) -> tuple[jax.Array, jax.Array]:
            signal, transition, old_signal = now
            total = link.to_y(signal, 1) + carried
            if transition is None:
                carried = jnp.zeros_like(total)
            else:
                matrix = link.to_y(jnp.swapaxes(transition, 0, 1), 2)
                carried = apply(matrix, self._masked(link, total))
            return carried if old_signal is None else carried + link.to_y(old_signal, 1), total

        rows = block.signal[g], block.jacobians.transition[g], block.old_signal[g]
        start = jnp.zeros_like(link.to_y(block.signal[g][0], 1))
        return jax.lax.scan(step, start, rows, reverse=True)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block, step by step: what is cut off differs from entry to entry."""
        start = self.init() if traces is None else traces
        return tuple(self._moved(link, start, block, operands) for link in self.links)

    def _moved(self, link: Link, traces: Traces, block: Block, operands: Operands) -> Arrays:
        """The trace of a link after a block."""
        rules, held = self.rules[link.index], operands[link.relation.index]
        y = link.operation.y_aval
        ones = jnp.ones((link.group.num_state, *link.extra, *y.shape), y.dtype)

        def step(trace: Arrays, now: Any) -> tuple[Arrays, None]:
            x, f, transition = now
            moved = None
            if transition is not None:
                moved = rules.propagate(link.to_y(transition, 2), trace, held)
                if self.masks[link.index] is not None:  # each state scaled by its row of the mask
                    moved = rules.scaled(self._masked(link, ones), moved, held)
            new = rules.joined(moved, rules.increments(x, f, held))
            return self.stored(link, new), None

        x, f, transition = block.jacobians.of(link)
        x, f = jax.tree.map(lambda v: v[:, None], (x, f))
        return jax.lax.scan(step, traces[link.index], (x, f, transition))[0]
