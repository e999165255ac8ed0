# SPDX-License-Identifier: Apache-2.0
"""pp_prop (ES-D-RTRL): input-output-dimension traces, of the size of the activity.

D-RTRL keeps the sum over past steps of (what ``f`` became) times ``x``. pp_prop replaces the sum of
products by the product of two sums, each a filter with a decay ``a``:

    eps_x^t = a_x eps_x^{t-1} + x^t                          per input,              [*X]
    eps_f^t = a_f D^t eps_f^{t-1} + (1 - a_f) f^t            per relation and group, [S, *E, *Y]
    dL/dw   = sum_t xy_to_dw(eps_x^t, u^t)
    u^t     = c^t sum_{s,E} (l^t + e^{t+1}) eps_f^t,         c^t = 1 / (1 - a_f^{t+1})

(Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w.) What the definition says
where it could be read in more than one way:

- ``t`` counts the steps since the traces were zero, from 0, whatever the number of steps of a
  call. It is part of the traces.
- ``e^t``, the gradient of ``L^t`` with respect to an *old* hidden value, belongs to the influence
  of step ``t - 1``: it is contracted with ``eps_x^{t-1}``, ``eps_f^{t-1}`` and ``c^{t-1}``. Before
  step 0 there is no influence. Inside a block ``e^{t+1}`` therefore adds to ``l^t``, and the first
  ``e`` of a block meets the traces that enter it.
- An operation without ``x`` has no ``eps_x``; what is left of the product is its ``eps_f``. The
  axes ``E`` of the group along which its ``y`` is broadcast (the batch above all), and those along
  which a tail mixes positions, are axes of ``eps_f`` and are summed over in ``u`` only.
- ``xy_to_dw`` is taken at the filtered ``x``. For an operation that is linear in ``x`` that is the
  filtered derivative; for another one it is the definition. A trainable operand whose derivative
  does not depend on ``x``, such as a bias, is not affected by ``eps_x``.
- With ``a_x = a_f = 0`` only the current step is left, ``xy_to_dw(x^t, sum l^t f^t)``; at ``t = 0``
  every decay gives that, because ``c^0 (1 - a_f) = 1``.

A block of ``K`` steps runs the two filters, which touch arrays of the size of the activity, and
then takes one product per relation and group over all its steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.precision import sum_dtype, wide_dtype, widened_dtype
from ..base.types import bytes_of
from ..executor.executor import Executor
from ..executor.layout import Link
from ..ops.moving import ExamplesSpec, MovingSpec
from ..ops.operation import Arrays
from ..ops.traces import output_trace
from .base import Block, Cotangents, LearningRule, OldSignals, Operands, Traces
from .block_algebra import accumulate, apply


class Filters(NamedTuple):
    """How many ``steps`` were filtered, ``eps_x`` by source, and ``eps_f`` per link.

    A source is the first relation with the same input.
    """

    steps: Any
    x: dict[int, Any]
    f: tuple[Any, ...]

    def of(self, link: Link, sources: Mapping[int, int]) -> tuple[Any, Any, Any]:
        """The number of steps, ``eps_x`` (if there is an input), and ``eps_f`` of a link."""
        return self.steps, self.x.get(sources.get(link.relation.index, -1)), self.f[link.index]


@dataclass(frozen=True, eq=False)
class IODimRule(LearningRule):
    """The learning rule pp_prop for one compiled model.

    Traces are ``(steps, eps_x, eps_f)``, the fields of :class:`Filters`: the number of steps since
    they were zero, and what they hold.

    Parameters
    ----------
    executor
        A compiled executor.
    decay_x, decay_f
        ``a_x`` and ``a_f``, in [0, 1).
    trace_dtype
        Dtype in which traces are kept between blocks; ``None``: that of ``x``, and of the family's
        ``init_pp``, and no narrower than those of parameters and states, and float32.

    Raises
    ------
    NotSupportedError
        When an input that is to be filtered is not floating-point.
    CompilationError
        When a family's ``init_pp`` gives something else than an array [*Y, S].

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.pp_prop, x, batch_size=2, decay_or_rank=0.9)
    >>> from braintrace.algorithms import IODimRule
    >>> isinstance(learner.rule, IODimRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["f"].shape
    (2, 4, 1)
    """

    executor: Executor
    decay_x: float
    decay_f: float
    trace_dtype: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for relation in self.executor.graph.hidden_param_op_relations:
            x = relation.x_var
            if self.decay_x and isinstance(relation.spec, MovingSpec | ExamplesSpec):
                raise NotSupportedError(
                    f"pp_prop filters the input of each operation, but the weight of "
                    f"{relation.primitive.name} at {relation.source} is chosen or masked by inputs "
                    "or states, so that its input alone does not say what a step adds. Use D-RTRL, "
                    "or leave inputs unfiltered with decay_or_rank=(0.0, decay)"
                )
            if x is not None and self.decay_x and not versions.is_float(x.aval):
                raise NotSupportedError(
                    f"pp_prop filters the input of each operation, but that of "
                    f"{relation.primitive.name} at {relation.source} has dtype {x.aval.dtype}; "
                    "convert it to floating point in front of the operation, or leave it "
                    "unfiltered with decay_or_rank=(0.0, decay)"
                )

    @property
    def name(self) -> str:
        return f"pp_prop, decays {self.decay_x:.3g} and {self.decay_f:.3g}"

    def init(self) -> Traces:
        """No step, and filters of zeros."""
        return tuple(jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), self._types))

    @cached_property
    def _types(self) -> Filters:
        """Types in which filters are kept."""

        def kept(shape: tuple[int, ...], dtype: Any, *links: Link) -> jax.ShapeDtypeStruct:
            own = jnp.issubdtype(dtype, jnp.floating) and self.trace_dtype
            wide = wide_dtype(*(link.operation.wide for link in links))
            return jax.ShapeDtypeStruct(shape, own or widened_dtype(dtype, wide))

        def factor(link: Link) -> jax.ShapeDtypeStruct:
            states, y = link.group.num_state, link.operation.y_aval
            dtype = output_trace(link.operation, states).dtype
            return kept((states, *link.extra, *y.shape), dtype, link)

        find, number = self.executor.sources, jax.ShapeDtypeStruct((), jnp.int32)
        sources = {*find.values()}
        inputs = [(r.index, r.x_var) for r in self.executor.graph.hidden_param_op_relations]
        of = {i: [k for k in self.links if find.get(k.relation.index) == i] for i in sources}
        x = {i: kept(x.aval.shape, x.aval.dtype, *of[i]) for i, x in inputs if x and i in sources}
        return Filters(number, x, tuple(map(factor, self.links)))

    @property
    def bytes_per_step(self) -> int:
        """The filters of every step are held until the product."""
        return bytes_of(self._types[1:])

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """``x``: ``eps_x`` [*X], absent without input; ``f``: ``eps_f`` [*E, *Y, S]."""
        _, x, f = Filters(*traces).of(self.links[index], self.executor.sources)
        return {**({} if x is None else {"x": x}), "f": jnp.moveaxis(f, 0, -1)}

    def _filtered(self, traces: Traces | None, block: Block) -> tuple[Filters, Traces]:
        """The filters at each of ``K`` steps, and the traces after them."""
        held = Filters(*(self.init() if traces is None else traces))
        if not self.links:
            return held, tuple(held)
        x, f, transition = block.jacobians
        one = jnp.ones(f[0].shape[0], held.steps.dtype)
        now = Filters(one, {s: x[s] for s in self.executor.sources.values()}, f)
        # a dtype that loses nothing of what is kept or new, and that filters can run in
        start = jax.tree.map(
            lambda v, new: v.astype(jnp.promote_types(sum_dtype(v.dtype), sum_dtype(new.dtype))),
            held,
            now,
        )

        def next_x(held: jax.Array, x: jax.Array) -> jax.Array:
            return self.decay_x * held + x if self.decay_x else x

        def next_f(link: Link, held: jax.Array, f: jax.Array, transition: Any) -> jax.Array:
            f = (1.0 - self.decay_f) * f.astype(held.dtype)
            if transition is None or not self.decay_f:
                return f
            return self.decay_f * apply(link.to_y(transition, 2).astype(held.dtype), held) + f

        def step(held: Filters, new: Any) -> tuple[Filters, Filters]:
            now, transition = new
            x = {s: next_x(v, now.x[s].astype(v.dtype)) for s, v in held.x.items()}
            transitions = (transition[link.group.index] for link in self.links)
            f = tuple(map(next_f, self.links, held.f, now.f, transitions))
            held = Filters(held.steps + now.steps, x, f)
            return held, held

        last, history = jax.lax.scan(step, start, (now, transition))
        return history, tuple(jax.tree.map(lambda v, kept: v.astype(kept.dtype), last, self._types))

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        return self._filtered(traces, block)[1]

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        return self.advance(traces, block, operands)[0]

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[Cotangents, Traces]:
        """Gradients and new traces, from one run of the filters.

        Where there is a signal at the first old values, the traces that enter the block come first.
        """
        history, new = self._filtered(traces, block)
        found, sources = [], self.executor.sources
        for link in self.links:
            g, seen = link.group.index, history.of(link, sources)
            signal, first = accumulate(None, block.signal[g], block.old_signal[g])
            if first is not None and traces is not None:
                steps, x, f = Filters(*traces).of(link, sources)
                x = None if x is None else jnp.where(steps > 0, x.astype(seen[1].dtype), seen[1][0])
                signal, seen = jax.tree.map(_after, (first, (steps, x, f)), (signal, seen))
            found.append(self._contracted(link, seen, signal, operands))
        return self.summed(found, operands), new

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        found: Cotangents = [{} for _ in self.links]
        held = Filters(*jax.tree.map(lambda v: v[None], traces))
        for link in self.links:
            if (own := signal[link.group.index]) is not None:
                seen = held.of(link, self.executor.sources)
                found[link.index] = self._contracted(link, seen, own[None], operands)
        return self.summed(found, operands)

    def _contracted(
        self, link: Link, seen: tuple[Any, Any, Any], signal: jax.Array, operands: Operands
    ) -> Arrays:
        """``sum_t xy_to_dw(eps_x^t, u^t)`` over steps with these numbers, filters and signals."""
        (count, x, f), operation = seen, link.operation
        dy = link.sum_to_y((f * link.to_y(signal, 2)).sum(1), 1)
        correction = self._correction(count).astype(dy.dtype)
        dy = dy * correction.reshape(-1, *(1,) * (dy.ndim - 1))
        return operation.contract(x, dy, operands[link.relation.index])

    def _correction(self, count: jax.Array) -> jax.Array:
        """``1 / (1 - a_f^n)`` after ``n`` steps, exact for decays close to one; 0 for ``n = 0``."""
        log = math.log(self.decay_f) if self.decay_f else -math.inf
        power = jnp.maximum(count, 1).astype(float) * log
        return jnp.where(count > 0, -1.0 / jnp.expm1(power), 0.0)


def _after(first: jax.Array, rest: jax.Array) -> jax.Array:
    """``rest`` [K, ..] with one more step in front."""
    return jnp.concatenate([first[None].astype(rest.dtype), rest])
