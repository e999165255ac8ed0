# SPDX-License-Identifier: Apache-2.0
"""D-RTRL: parameter-dimension traces with the diagonal of the transition.

Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w; blocked evaluation after
Schmidhuber, Neural Computation 4:243, 1992.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base.errors import refuse_unused
from ..base.precision import sum_dtype
from ..executor.cascade import Cascade
from ..executor.layout import Link
from ..ops.operation import Arrays
from ..ops.traces.bands import Bands
from ..ops.traces.base import is_parted
from .base import Block, Cotangents, Entries, OldSignals, Operands, ParameterTraces, Traces
from .block_algebra import (
    accumulate,
    accumulate_pulled,
    apply,
    meet,
    products_by_bands,
    suffix_products,
)
from .by_example import goes_by_example, moved_by_example
from .in_place import after, put_together, step_of_trace


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

    adds_up_parts = True
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
    def needs_no_past(self) -> bool:
        return type(self) is ParamDimRule and not self.executor.bands

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
        signals: dict[int, jax.Array] = {}
        entries: dict[int, jax.Array | None] = {}
        met: dict[int, jax.Array] = {}
        for g in (group.index for group in self.executor.driven):
            moving = block.jacobians.transition[g]
            signal, old = block.signal[g], block.old_signal[g]
            if self.of_model and isinstance(moving, Bands) and moving.pulled is not None:
                found, entries[g] = accumulate_pulled(moving.pulled, signal, old)
                met |= found
                continue
            passing = self.executor.passing(g) if self.of_model else None
            signals[g], entries[g] = accumulate(moving, signal, old, passing)

        def contracted(link: Link) -> Arrays:
            if link.index not in met:
                return self.contracted(link, block, signals, operands)
            x, held = block.jacobians.x[link.relation.index], operands[link.relation.index]
            return link.operation.contract(x, met[link.index], held, self.parts)

        return [*map(contracted, self.links)], entries

    def contracted(
        self, link: Link, block: Block, signals: Mapping[int, jax.Array], operands: Operands
    ) -> Arrays:
        """``sum_t xy_to_dw(x^t, sum_s f^t a^t)`` of a link, with ``a`` [K, S, *V] by group."""
        x, f, _ = block.jacobians.of(link)
        met = meet(f, link.to_y(signals[link.group.index], 2), self._driving(link))
        held = operands[link.relation.index]
        return link.contract(x, met, held, self.parts)

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

    def parted(self, traces: Traces) -> Traces:
        if not self.has_parts:
            return traces
        rows = zip(self.rules, traces, self._have_parts, strict=True)
        return tuple(rules.parted(trace) if parts else trace for rules, trace, parts in rows)

    @property
    def has_parts(self) -> bool:
        return any(self._have_parts)

    @cached_property
    def _have_parts(self) -> list[bool]:
        """By link, whether its trace is an array for each state in a loop of single steps."""
        if type(self) is not ParamDimRule or not self.of_model:
            return [False for _ in self.links]
        moving = self.executor.jacobian_types.transition
        by_bands = (isinstance(moving[link.group.index], Bands) for link in self.links)
        pairs = zip(self.rules, by_bands, strict=True)
        return [rules.has_parts and not bands for rules, bands in pairs]

    def joined(self, traces: Traces) -> Traces:
        if not self._are_parted(traces):
            return traces
        return tuple(map(put_together, traces))

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[Cotangents, Traces]:
        """:meth:`solve` and :meth:`update`; a single step of parted traces writes over them."""
        moving, of_old = block.jacobians.transition, any(e is not None for e in block.old_signal)
        by_bands = any(isinstance(one, Bands) for one in moving)
        pairs = zip(self.rules, (moving[link.group.index] for link in self.links), strict=True)
        large = traces is not None and any(goes_by_example(*pair) for pair in pairs)
        at_once = self._are_parted(traces) or (type(self) is ParamDimRule and large)
        if not at_once or of_old or by_bands or not self.reads_new(block):
            return self._in_order(traces, block, operands)
        steps = [self._one_step(link, traces, block, operands) for link in self.links]
        return self.summed([found for _, found in steps], operands), tuple(new for new, _ in steps)

    def _in_order(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[Cotangents, Traces]:
        """:meth:`solve`, then :meth:`update`, where a trace is written over itself in a loop."""
        in_loop = traces is not None and any(rules.by_example for rules in self.rules)
        if not in_loop or self.reads_new(block):
            return super().advance(traces, block, operands)
        found = self.solve(traces, block, operands)
        moving = after(block.jacobians.f, found)
        block = block._replace(jacobians=block.jacobians._replace(f=moving))
        return found, self.update(traces, block, operands)

    def _are_parted(self, traces: Traces | None) -> bool:
        return type(self) is ParamDimRule and any(map(is_parted, traces or ()))

    def _one_step(
        self, link: Link, traces: Any, block: Block, operands: Operands
    ) -> tuple[Arrays, Arrays]:
        """The trace of a link after a single step, and what the signal finds in it."""
        g, trace, rules = link.group.index, traces[link.index], self.rules[link.index]
        (x, f, transition), held = block.jacobians.of(link), operands[link.relation.index]
        if transition is None:
            found = self.contracted(link, block, {g: block.signal[g]}, operands)
            new = rules.increments(x, f, held)
            return self.stored(link, rules.parted(new) if is_parted(trace) else new), found
        if goes_by_example(rules, transition):
            signal = link.to_y(block.signal[g][0], 1)
            return self._by_example(link, transition, trace, block, operands, signal)
        if isinstance(transition, Cascade) and not is_parted(trace):
            whole = jax.vmap(lambda one: one.composed(self.links))(block.jacobians)
            x, f, transition = whole.of(link)
        shape = 2 * (1,) + link.group.varshape
        moving = jax.tree.map(
            lambda v: link.to_y(jnp.broadcast_to(v[0], jnp.broadcast_shapes(v[0].shape, shape)), 2),
            transition,
        )
        signal = link.to_y(block.signal[g][0], 1)
        if is_parted(trace):
            heard = block.heard[g] if block.heard else (True,) * rules.num_state
            how = self.executor.passing(g), signal, heard
            return step_of_trace(rules, (x, f, moving), *how, trace, held)
        kept = rules.propagate(moving, trace, held)
        new = self.stored(link, rules.joined(kept, rules.increments(x, f, held)))
        return new, rules.solve(signal, new, held)

    def _by_example(
        self,
        link: Link,
        transition: Cascade,
        trace: Arrays,
        block: Block,
        operands: Operands,
        signal: jax.Array | None = None,
    ) -> tuple[Arrays, Arrays]:
        """The trace of a link with many states after a single step, and what a signal finds."""
        x, f, _ = block.jacobians.of(link)
        now = jax.tree.map(lambda v: v[0], transition).laid(link.to_y)
        held = operands[link.relation.index]
        return moved_by_example(self.rules[link.index], now, trace, held, (x, f), signal)

    def reads_new(self, block: Block) -> bool:
        """Whether a block is a single step, or without operations, with exact traces after it."""
        one_step = all(len(f) == 1 for f in block.jacobians.f)
        return self.of_model and self.trace_dtype is None and one_step

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        new = tuple(map(self.stored, self.links, self.moved(traces, block, operands)))
        return self.parted(new) if self._are_parted(traces) else new

    def moved(
        self,
        traces: Traces | None,
        block: Block,
        operands: Operands,
        decays: Any = None,
        kept: Sequence[Arrays] | None = None,
    ) -> list[Arrays]:
        """Per link, ``P^0 . eps^0 + sum_t (P^t f^t) (x) x^t``; see :func:`suffix_products`.

        ``kept`` are traces from before the block that are added to ``P^0 . eps^0``.
        """
        new: list[Arrays] = []
        products: dict[int, Any] = {}
        for link, rules in zip(self.links, self.rules, strict=True):
            (x, f, transition), g = block.jacobians.of(link), link.group.index
            held, driving = operands[link.relation.index], self._driving(link) or ()
            if not rules.num_state:
                new.append({})
                continue
            if isinstance(own := self.read(link, transition, 1, 2), Bands):
                new.append(self._moved_by_bands(link, own, traces, block, operands))
                continue
            single = len(f) == 1 and decays is None and kept is None
            if single and traces is not None and goes_by_example(rules, transition):
                trace = traces[link.index]
                new.append(self._by_example(link, transition, trace, block, operands)[0])
                continue
            if transition is None and decays is None:  # only the last step is left in the trace
                x, f = jax.tree.map(lambda v: v[-1:], (x, f))
            elif transition is None:
                f = decays.astype(sum_dtype(f.dtype)).reshape(-1, *(1,) * (f.ndim - 1)) * f
            else:
                if g not in products:
                    products[g] = suffix_products(own, decays)
                passing = (driving,) * len(driving) if len(driving) == rules.num_state else None
                driven = jax.vmap(partial(apply, passing=passing))
                f = driven(link.to_y(products[g][0], 3), self.read(link, f, 1))
            before = None if kept is None else kept[link.index]
            if g in products and traces is not None:
                whole, trace = products[g][1], traces[link.index]
                if before is None and not isinstance(whole, Cascade):
                    new.append(rules.moved(link.to_y(whole, 2), trace, x, f, held))
                    continue
                before = rules.plus(self._propagated(link, whole, trace, held), before)
            new.append(rules.joined(before, rules.increments(x, f, held)))
        return new

    def _propagated(self, link: Link, whole: Any, trace: Arrays, held: Sequence[Any]) -> Arrays:
        """``P^0 . eps^0``."""
        rules = self.rules[link.index]
        if goes_by_example(rules, whole):
            return moved_by_example(rules, whole.laid(link.to_y), trace, held)[0]
        whole = whole.composed() if isinstance(whole, Cascade) else whole
        return rules.propagate(link.to_y(whole, 2), trace, held)

    def _moved_by_bands(
        self, link: Link, transition: Bands, traces: Traces | None, block: Block, operands: Operands
    ) -> Arrays:
        """What :meth:`moved` gives for a link, with ``D`` by its bands [K, n, *V].

        Where products of ``D`` are made of few bands, too (of a ring, the ones that stay, and those
        that are written), the block is one product. Otherwise (of a shift) its steps are gone
        through one by one.
        """
        (x, f, _), held = block.jacobians.of(link), operands[link.relation.index]
        rules, f = self.rules[link.index], self.read(link, f, 1)
        if traces is None and len(f) == 1:
            return rules.joined(None, rules.increments(x, f, held))
        moving = jax.tree.map(lambda v: link.to_y(v, 2), transition.by_entries)
        if len(f) > 1 and (found := products_by_bands(moving, f)) is not None:
            factors, whole = found
            kept: Arrays | None = None
            if traces is not None:
                kept = rules.propagate_by_bands(whole, traces[link.index], None, None, held)
            return rules.joined(kept, rules.increments(x, factors, held))

        def step(trace: Arrays, now: Any) -> tuple[Arrays, None]:
            x, f, moving = now
            new = rules.propagate_by_bands(moving, trace, x, f, held)
            return {key: leaf.astype(trace[key].dtype) for key, leaf in new.items()}, None

        start = rules.init()
        if traces is not None:
            wide = {
                k: jnp.promote_types(v.dtype, start[k].dtype) for k, v in traces[link.index].items()
            }
            start = {key: leaf.astype(wide[key]) for key, leaf in traces[link.index].items()}
        if len(f) == 1:
            return step(start, jax.tree.map(lambda v: v[0], (x, f, moving)))[0]
        return jax.lax.scan(step, start, (x, f, moving))[0]

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key; [B, in, out, S] for a dense product of a batch."""
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in traces[index].items()}
