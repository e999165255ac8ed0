# SPDX-License-Identifier: Apache-2.0
"""UORO: an unbiased estimate of the influence of the weights, of rank one.

The influence within a group, ``M^t = D^t M^{t-1} + F^t`` with the whole ``D``, is estimated by one
product ``s (x) theta`` per example. With signs ``nu`` drawn anew at every step,

    s^t     = rho_0 D^t s^{t-1}  + rho_1 nu
    theta^t = theta^{t-1} / rho_0 + (nu^T F^t) / rho_1

has the mean ``M^t``, because the mean of ``nu nu^T`` is the identity and all that is odd in ``nu``
has mean zero; this holds for every ``rho`` that is even in ``nu``. The ``rho`` chosen here make
both factors equally large, which keeps the variance low (Tallec & Ollivier 2017, arXiv 1702.05043).

Every position along which the group is not mixed (every example of a batch) has a product of its
own. The relations of a group share ``s`` and ``nu``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.own_part import own_part
from ..base.precision import wide_dtype, widened
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..ops.operation import Arrays
from .base import Block, Cotangents, OldSignals, Operands, ParameterTraces, Traces, add
from .block_algebra import apply


class RankOne(NamedTuple):
    """``s`` [S, *V] by group, ``theta`` per link, and the state of the random numbers."""

    s: dict[int, Any]
    theta: tuple[Arrays, ...]
    key: jax.Array


@dataclass(frozen=True, eq=False)
class UORORule(ParameterTraces):
    """The learning rule UORO for one compiled model.

    Parameters
    ----------
    executor, trace_dtype
        See :class:`ParamDimRule`; an executor with ``jacobians='whole'``.
    seed
        An integer or a JAX key: where the random signs start after a reset.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.UORO, x, batch_size=2)
    >>> from braintrace.algorithms import UORORule
    >>> isinstance(learner.rule, UORORule)
    True
    """

    adds_up_parts = True
    jacobians = "whole"
    of_no_example = (2,)
    seed: Any = 0

    @property
    def name(self) -> str:
        return "UORO"

    def states_of(self, link: Link) -> int:
        """``theta`` is laid out like a trace with one state."""
        return 1

    def init(self) -> Traces:
        """Estimates of zero, and the first random state."""
        s = {}
        for g in self.executor.driven:
            wide = (link.operation.wide for link in self.links if link.group is g)
            dtype = self.trace_dtype or wide_dtype(g.wide, *wide)
            s[g.index] = jnp.zeros((g.num_state, *g.varshape), dtype)
        bits = versions.random_bits_of(self.seed)
        return tuple(RankOne(s, tuple(map(self.zeros, self.links)), bits))

    def _advanced(self, held: RankOne, now: StepJacobians, operands: Operands) -> RankOne:
        """The estimate after a step."""
        key, draw = jax.random.split(held.key)
        s, theta = {}, [*held.theta]
        for n, group in enumerate(self.executor.driven):
            g, s_old = group.index, widened(held.s[group.index], group.wide)
            links = [link for link in self.links if link.group is group]
            own = partial(jax.random.rademacher, jax.random.fold_in(draw, n), dtype=s_old.dtype)
            axis = min(1 + _axis_of_examples(links), s_old.ndim - 1)
            signs = own_part(own, s_old.shape, axis)
            fresh = [self._drawn(link, now, signs, operands) for link in links]
            kept = [held.theta[link.index] for link in links]
            transition = now.transition[g]
            moved = jnp.zeros_like(s_old) if transition is None else apply(transition, s_old)
            to_s, to_theta = _balanced(self._norm(links, kept, operands), moved)
            of_s, of_theta = _balanced(self._norm(links, fresh, operands), signs)
            s[g] = (to_s * moved + of_s * signs).astype(held.s[g].dtype)
            for link, old, new in zip(links, kept, fresh, strict=True):
                old = self._scaled(link, to_theta, old, operands)
                found = add(old, self._scaled(link, of_theta, new, operands))
                theta[link.index] = self.stored(link, found)
        return RankOne(s, tuple(theta), key)

    def _drawn(
        self, link: Link, now: StepJacobians, signs: jax.Array, operands: Operands
    ) -> Arrays:
        """``nu^T F`` of a link, in the structure of ``theta``."""
        x, f, _ = now.of(link)
        f = (f * link.to_y(signs, 1)).sum(0)[None, None]
        x = None if x is None else x[None]
        return self.rules[link.index].increments(x, f, operands[link.relation.index])

    def _scaled(self, link: Link, factor: jax.Array, theta: Arrays, operands: Operands) -> Arrays:
        """``theta`` times a factor [*V] per position."""
        laid, held = link.to_y(factor, 0)[None], operands[link.relation.index]
        return self.rules[link.index].scaled(laid, theta, held)

    def _norm(
        self, links: Sequence[Link], thetas: Sequence[Arrays], operands: Operands
    ) -> jax.Array:
        """Length of all entries of links of a group that belong to a position [*V].

        The transpose of a scaling by position is the sum over what is scaled.
        """
        ones = jnp.ones(links[0].group.varshape)
        total = jnp.zeros_like(ones)
        for link, theta in zip(links, thetas, strict=True):
            squares = {key: leaf.astype(total.dtype) ** 2 for key, leaf in theta.items()}
            scaled = partial(self._scaled, link, theta=squares, operands=operands)
            _, pull = jax.vjp(scaled, ones)
            total = total + pull(jax.tree.map(jnp.ones_like, squares))[0]
        return jnp.sqrt(total)

    def _met(self, held: RankOne, signal: OldSignals, operands: Operands) -> Cotangents:
        """Per link, ``<signal, s> theta``."""
        met = {g: (signal[g] * s).sum(0)[None] for g, s in held.s.items() if signal[g] is not None}
        return self.with_entries([{} for _ in self.links], held.theta, met, operands)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        return self.summed(self._met(RankOne(*traces), signal, operands), operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        unread = dict.fromkeys(("signal", "old_signal"), (None,) * len(self.executor.groups))
        return self.advance(traces, block._replace(**unread), operands)[1]

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        return self.advance(traces, block, operands)[0]

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[Cotangents, Traces]:
        """Gradients and new traces, step by step: the signs are drawn for each."""
        start = self.init() if traces is None else traces

        def step(carry: Any, now: Any) -> tuple[Any, None]:
            held, total = carry
            jacobians, signal, old_signal, _ = now
            before = self._met(RankOne(*held), old_signal, operands)
            after = self._advanced(RankOne(*held), jacobians, operands)
            found = map(add, before, self._met(after, signal, operands))
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, list(found))
            return (tuple(after), total), None

        first = jax.tree.map(lambda v: v[0], block.signal)
        shapes = jax.eval_shape(lambda: self._met(RankOne(*start), first, operands))
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
        rows = tuple(block._replace(given=None))
        if not jax.tree.leaves(rows):  # all credit is in the filters of uniform states
            return self.summed(zeros, operands), start
        (last, total), _ = jax.lax.scan(step, (start, zeros), rows)
        return self.summed(total, operands), last

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """``theta`` by trainable key, and ``"s"`` [*V, S]."""
        held = RankOne(*traces)
        theta = {key: leaf[0] for key, leaf in held.theta[index].items()}
        return {**theta, "s": jnp.moveaxis(held.s[self.links[index].group.index], 0, -1)}


def _axis_of_examples(links: Sequence[Link]) -> int:
    """Along which axis of positions [*V] the examples lie."""
    axes = (k.alignment.axes[0] for k in links if k.relation.spec.batched)
    return next((axis for axis in axes if axis is not None), 0)


def _balanced(theta: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``rho`` and ``1 / rho`` for a length of ``theta`` and ``s`` itself [S, *V].

    Where one is zero, both are 0: the product is zero, and what is left of the other factor would
    only add noise.
    """
    length = jnp.sqrt((s**2).sum(0))
    product = (theta > 0) & (length > 0)
    rho = jnp.sqrt(jnp.where(product, theta, 1.0) / jnp.where(product, length, 1.0))
    return jnp.where(product, rho, 0.0), jnp.where(product, 1.0 / rho, 0.0)
