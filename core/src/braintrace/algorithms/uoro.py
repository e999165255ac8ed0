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

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link, Positions
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
    executor
        A compiled executor with ``jacobians='whole'``.
    trace_dtype
        Dtype in which traces are kept; ``None``: that of the operation's output.
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

    jacobians = "whole"
    seed: Any = 0

    @property
    def name(self) -> str:
        return "UORO"

    def states_of(self, link: Link) -> int:
        """``theta`` is laid out like a trace with one state."""
        return 1

    def init(self) -> Traces:
        """Estimates of zero, and the first random state."""
        theta = tuple(self.stored(i, rules.init()) for i, rules in enumerate(self.rules))
        s = {
            g.index: jnp.zeros((g.num_state, *g.varshape), self._dtype(g))
            for g in self.executor.driven
        }
        return tuple(RankOne(s, theta, versions.random_bits_of(self.seed)))

    def _dtype(self, group: Positions) -> Any:
        ys = [k.relation.y_var.aval.dtype for k in self.links if k.group is group]
        return self.trace_dtype or jnp.result_type(*ys)

    # --- one step ----------------------------------------------------------------------------

    def _advanced(self, held: RankOne, now: StepJacobians, operands: Operands) -> RankOne:
        """The estimate after a step."""
        key, draw = jax.random.split(held.key)
        s, theta = {}, dict(enumerate(held.theta))
        for n, group in enumerate(self.executor.driven):
            g, s_old = group.index, held.s[group.index]
            signs = jax.random.rademacher(jax.random.fold_in(draw, n), s_old.shape, s_old.dtype)
            links = [i for i, k in enumerate(self.links) if k.group is group]
            fresh = {i: self._drawn(i, now, signs, operands) for i in links}
            transition = now.transition[g]
            moved = jnp.zeros_like(s_old) if transition is None else apply(transition, s_old)
            old = self._norm({i: theta[i] for i in links}, group, operands)
            to_s, to_theta = _balanced(old, _length(moved))
            of_s, of_theta = _balanced(self._norm(fresh, group, operands), _length(signs))
            s[g] = (to_s * moved + of_s * signs).astype(s_old.dtype)
            for i in links:
                kept = self._scaled(i, to_theta, theta[i], operands)
                found = add(kept, self._scaled(i, of_theta, fresh[i], operands))
                theta[i] = self.stored(i, found)
        return RankOne(s, tuple(theta.values()), key)

    def _drawn(self, i: int, now: StepJacobians, signs: jax.Array, operands: Operands) -> Arrays:
        """``nu^T F`` of a link, in the structure of ``theta``."""
        link, r = self.links[i], self.links[i].relation.index
        f = (now.f[i] * link.to_y(signs, 1)).sum(0)
        x = None if now.x[r] is None else now.x[r][None]
        return self.rules[i].increments(x, f[None, None], operands[r])

    def _scaled(self, i: int, factor: jax.Array, theta: Arrays, operands: Operands) -> Arrays:
        """``theta`` times a factor [*V] per position."""
        link = self.links[i]
        laid = link.to_y(factor, 0)[None]
        return self.rules[i].scaled(laid, theta, operands[link.relation.index])

    def _norm(self, thetas: dict[int, Arrays], group: Positions, operands: Operands) -> jax.Array:
        """Length of all entries that belong to a position [*V].

        The transpose of a scaling by position is the sum over what is scaled.
        """
        total = jnp.zeros(group.varshape)
        for i, theta in thetas.items():
            squares = {key: leaf.astype(total.dtype) ** 2 for key, leaf in theta.items()}
            _, pull = jax.vjp(
                lambda factor, i=i, squares=squares: self._scaled(i, factor, squares, operands),
                jnp.ones(group.varshape),
            )
            total = total + pull(jax.tree.map(jnp.ones_like, squares))[0]
        return jnp.sqrt(total)

    def _met(self, held: RankOne, signal: OldSignals, operands: Operands) -> Cotangents:
        """Per link, ``<signal, s> theta``."""
        found = []
        for link, rules, theta in zip(self.links, self.rules, held.theta, strict=True):
            g, r = link.group.index, link.relation.index
            l_g = signal[g]
            along = jnp.zeros(link.group.varshape) if l_g is None else (l_g * held.s[g]).sum(0)
            found.append(rules.solve(link.to_y(along, 0)[None], theta, operands[r]))
        return found

    # --- blocks ------------------------------------------------------------------------------

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        return self.summed(self._met(RankOne(*traces), signal, operands), operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:

        def step(held: Traces, now: StepJacobians) -> tuple[Traces, None]:
            return tuple(self._advanced(RankOne(*held), now, operands)), None

        start = self.init() if traces is None else traces
        return jax.lax.scan(step, start, block.jacobians)[0]

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

        first = tuple(signal[0] for signal in block.signal)
        shapes = jax.eval_shape(lambda: self._met(RankOne(*start), first, operands))
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
        (last, total), _ = jax.lax.scan(step, (start, zeros), tuple(block._replace(given=None)))
        return self.summed(total, operands), last

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """``theta`` by trainable key, and ``"s"`` [*V, S]."""
        held = RankOne(*traces)
        theta = {key: leaf[0] for key, leaf in held.theta[index].items()}
        return {**theta, "s": jnp.moveaxis(held.s[self.links[index].group.index], 0, -1)}


def _length(array: jax.Array) -> jax.Array:
    """Euclidean length over the states [*V]."""
    return jnp.sqrt((array**2).sum(0))


def _balanced(theta: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``rho`` and ``1 / rho`` for factors of these lengths; both 0 where one factor is zero.

    There the product is zero, and what is left of the other factor would only add noise.
    """
    product = (theta > 0) & (s > 0)
    rho = jnp.sqrt(jnp.where(product, theta, 1.0) / jnp.where(product, s, 1.0))
    return jnp.where(product, rho, 0.0), jnp.where(product, 1.0 / rho, 0.0)
