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

A loop of ``K`` steps runs the two filters, which touch arrays of the size of the activity, and
keeps ``eps_x^t`` and ``u^t`` of each; then comes one product per relation and group over all steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link, added_up
from ..ops.moving import ExamplesSpec, MovingSpec
from ..ops.traces import output_trace
from .base import Block, Cotangents, LearningRule, OldSignals, Operands, Traces, add
from .block_algebra import accumulate, apply


class Filters(NamedTuple):
    """How many ``steps`` were filtered, ``eps_x`` by source, and ``eps_f`` per link.

    A source is the first relation with the same input. While steps are run, a link whose ``eps_f``
    is that of an earlier one has ``None``.
    """

    steps: Any
    x: dict[int, Any]
    f: tuple[Any, ...]


class Met(NamedTuple):
    """What signals meet in the filters: ``eps_x`` by source, and ``u`` [*Y] by the first link."""

    x: dict[int, Any]
    u: dict[int, Any]


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

    adds_up_parts = True
    takes_steps = True
    of_no_example = (0,)

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
        """Filtered inputs and ``u`` of every step are held until the product."""
        chosen = {*self._first}
        u = (
            link.operation.y_aval.size * v.dtype.itemsize
            for link, v in zip(self.links, self._types.f, strict=True)
            if link.index in chosen
        )
        return bytes_of(self._types.x) + sum(u)

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """``x``: ``eps_x`` [*X], absent without input; ``f``: ``eps_f`` [*E, *Y, S]."""
        held, source = Filters(*traces), self._source(self.links[index])
        x = {"x": held.x[source]} if source in held.x else {}
        return {**x, "f": jnp.moveaxis(held.f[index], 0, -1)}

    @cached_property
    def _first(self) -> tuple[int, ...]:
        """For each link, the first one with the same ``eps_f``: terms of one sum have the same."""
        found, types = added_up(self.links, self.executor.graph.module_info), self._types.f
        return tuple(k if types[i] == types[k] else i for i, k in sorted(found.items()))

    def _source(self, link: Link) -> int:
        """The first relation with the input of a link; of one without input, -1."""
        return self.executor.sources.get(link.relation.index, -1)

    # --- steps one after the other ---------------------------------------------------------------

    def hold(self, traces: Traces | None, types: StepJacobians | None = None) -> Filters:
        """Filters in dtypes that lose nothing of what is kept or new, and that they can run in."""
        held = Filters(*(self.init() if traces is None else traces))
        x, f, _ = types or self.executor.jacobian_types
        now = Filters(held.steps, {s: x[s] for s in held.x}, f)

        def opened(v: jax.Array, new: Any) -> jax.Array:
            return v.astype(jnp.promote_types(sum_dtype(v.dtype), sum_dtype(new.dtype)))

        held = held._replace(f=self._alone(held.f))
        return jax.tree.map(opened, held, now._replace(f=self._alone(now.f)))

    def _alone(self, f: Sequence[Any]) -> tuple[Any, ...]:
        """One of several links with the same ``eps_f``."""
        return tuple(v if self._first[i] == i else None for i, v in enumerate(f))

    def take(self, held: Filters, step: Block) -> tuple[Filters, Met]:
        """The filters after a step, and what its signal meets there."""
        held = self._next(held, step.jacobians)
        return held, self._met(held, step.signal)

    def release(self, held: Filters, kept: Met, operands: Operands) -> tuple[Cotangents, Traces]:
        return self._contracted(kept, operands), self._kept(held)

    def _kept(self, held: Filters) -> Traces:
        held = held._replace(f=tuple(held.f[i] for i in self._first))
        return tuple(jax.tree.map(lambda v, own: v.astype(own.dtype), held, self._types))

    def _next(self, held: Filters, jacobians: StepJacobians) -> Filters:
        """The filters after a step."""
        past = held.steps > 0  # before it, filters are zero, whatever the first ``D`` is

        def next_x(source: int, held: jax.Array) -> jax.Array:
            x = jacobians.x[source].astype(held.dtype)
            return self.decay_x * held + x if self.decay_x else x

        def next_f(link: Link, held: jax.Array | None) -> jax.Array | None:
            if held is None:
                return None
            _, f, transition = jacobians.of(link)
            f = (1.0 - self.decay_f) * f.astype(held.dtype)
            if transition is None or not self.decay_f:
                return f
            transition = jnp.where(past, link.to_y(transition, 2).astype(held.dtype), 0.0)
            return self.decay_f * apply(transition, held) + f

        x = {source: next_x(source, v) for source, v in held.x.items()}
        return Filters(held.steps + 1, x, tuple(map(next_f, self.links, held.f)))

    def _met(self, held: Filters, signal: OldSignals) -> Met:
        """``eps_x^t`` and ``u^t`` from the filters and signals [S, *V] of groups that have one."""
        own = ((self.links[i], signal[self.links[i].group.index]) for i in {*self._first})
        u = {k.index: self._u(k, held, one) for k, one in own if one is not None}
        return Met(held.x, u)

    def _u(self, link: Link, held: Filters, signal: jax.Array) -> jax.Array:
        u = (held.f[link.index] * link.to_y(signal, 1)).sum(0)
        u = link.sum_to_y(u, 0) if self.parts == 1 else u  # else over devices, and so at once
        return u * self._correction(held.steps).astype(u.dtype)

    def _contracted(self, met: Met, operands: Operands, alone: bool = True) -> Cotangents:
        """``sum_t xy_to_dw(eps_x^t, u^t)`` over steps; ``alone``: a link has no other terms."""
        found: Cotangents = [{} for _ in self.links]
        for link in self.links:
            if (u := met.u.get(self._first[link.index])) is not None:
                x = met.x.get(self._source(link))
                held = operands[link.relation.index]
                whole = alone and not link.extra and link.index not in self.executor.shared
                run = link.operation.contract if self.parts == 1 else link.contract
                found[link.index] = run(x, u, held, 1 if whole else self.parts)
        return self.summed(found, operands)

    # --- a block of them -------------------------------------------------------------------------

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        def step(held: Filters, jacobians: StepJacobians) -> tuple[Filters, None]:
            return self._next(held, jacobians), None

        start = self.hold(traces, block.jacobians)
        return self._kept(jax.lax.scan(step, start, block.jacobians)[0])

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        return self.advance(traces, block, operands)[0]

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[Cotangents, Traces]:
        """Gradients and new traces: a loop of :meth:`take`.

        A signal at the first old values meets the traces that enter the block.
        """
        rows = zip(block.signal, block.old_signal, strict=True)
        own = [accumulate(None, *row) for row in rows]
        steps = Block(block.jacobians, tuple(signal for signal, _ in own), ())
        held, met = jax.lax.scan(self.take, self.hold(traces, block.jacobians), steps)
        first = tuple(entry for _, entry in own)
        if traces is None or all(entry is None for entry in first):
            return self.release(held, met, operands)
        found = self._contracted(met, operands, alone=False)
        before = self._at_start(traces, first, operands, {s: x[0] for s, x in met.x.items()})
        return [*map(add, found, before)], self._kept(held)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        return self._at_start(traces, signal, operands, {})

    def _at_start(
        self, traces: Traces, signal: OldSignals, operands: Operands, first: Mapping[int, Any]
    ) -> Cotangents:
        """:meth:`solve_at_start`; before any step there is no influence, whatever ``x`` is.

        An operation may have no derivative at ``eps_x = 0``, so that its ``first`` is taken there.
        """
        met = self._met(held := Filters(*traces), signal)
        some = held.steps > 0
        x = {s: jnp.where(some, v, first.get(s, v).astype(v.dtype)) for s, v in met.x.items()}
        return self._contracted(jax.tree.map(lambda v: v[None], Met(x, met.u)), operands, False)

    def _correction(self, count: jax.Array) -> jax.Array:
        """``1 / (1 - a_f^n)`` after ``n`` steps, exact for decays close to one; 0 for ``n = 0``."""
        log = math.log(self.decay_f) if self.decay_f else -math.inf
        power = jnp.maximum(count, 1).astype(float) * log
        return jnp.where(count > 0, -1.0 / jnp.expm1(power), 0.0)
