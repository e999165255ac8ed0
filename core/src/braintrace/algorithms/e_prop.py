# SPDX-License-Identifier: Apache-2.0
"""e-prop: D-RTRL whose traces pass a low-pass filter before they meet the learning signal.

    eps^t  = D^t eps^{t-1} + f^t (x) x^t
    ebar^t = kappa ebar^{t-1} + eps^t
    dL/dw  = sum_t <l^t, ebar^t> + <e^t, ebar^{t-1}>

(Bellec et al., Nature Communications 11:3625, 2020, doi 10.1038/s41467-020-17236-y.) Over a block,
the filter moves over to the signal, ``mbar^t = l^t + e^{t+1} + kappa mbar^{t+1}``, which then runs
backward through ``D`` as in D-RTRL. The filtered trace leaves the block with filtered suffix
products, ``Q^t = kappa^{K-t} + Q^{t+1} D^{t+1}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..ops.operation import Arrays
from .base import Block, Cotangents, OldSignals, Operands, Traces, add
from .block_algebra import Accumulated, accumulate, suffix_products
from .d_rtrl import ParamDimRule


@dataclass(frozen=True, eq=False)
class EPropRule(ParamDimRule):
    """The learning rule e-prop for one compiled model.

    Traces are those of D-RTRL, one dict per link, and then the filtered ones.

    Parameters
    ----------
    executor, trace_dtype, of_model
        See :class:`ParamDimRule`.
    kappa
        Decay of the filter, in [0, 1).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "eprop", x, batch_size=2, kappa_filter_decay=0.9)
    >>> from braintrace.algorithms import EPropRule
    >>> isinstance(learner.rule, EPropRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["weight"].shape
    (2, 7, 4, 1)
    """

    kappa: float = 0.0

    @property
    def name(self) -> str:
        return f"e-prop, kappa {self.kappa:.3g}"

    def init(self) -> Traces:
        """Traces of zeros."""
        return (*super().init(), *super().init())

    def _halves(self, traces: Traces) -> tuple[Traces, Traces]:
        """``eps`` and ``ebar``."""
        return traces[: len(self.links)], traces[len(self.links) :]

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:

        def filtered(carried: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            carried = now + self.kappa * carried
            return carried, carried

        raw: dict[int, Accumulated] = {}
        entries: dict[int, jax.Array] = {}  # mbar^0 without l^0, for the trace that enters
        for g in (group.index for group in self.executor.driven):
            total, first = accumulate(None, block.signal[g], block.old_signal[g])
            last, signal = jax.lax.scan(filtered, jnp.zeros_like(total[0]), total, reverse=True)
            entries[g] = self.kappa * last if first is None else self.kappa * last + first
            raw[g] = accumulate(block.jacobians.transition[g], signal, None)
        found = self.contracted(block, raw, operands)
        if traces is not None:
            eps, ebar = self._halves(traces)
            found = self.with_entries(found, eps, {g: a.entry for g, a in raw.items()}, operands)
            found = self.with_entries(found, ebar, entries, operands)
        return self.summed(found, operands)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        return super().solve_at_start(self._halves(traces)[1], signal, operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        eps, ebar = (None, None) if traces is None else self._halves(traces)
        steps = block.jacobians.f[0].shape[0] if self.links else 0
        products = [
            None if d is None else suffix_products(d, self._decays(steps, d.dtype))
            for d in block.jacobians.transition
        ]
        new = []
        for i, link in enumerate(self.links):
            f, found = block.jacobians.f[i], products[link.group.index]
            if found is None:
                weights = self._decays(steps, f.dtype).reshape(-1, *(1,) * (f.ndim - 1))
                trace = self.increments(i, block, weights * f, operands)
            else:
                trace = self.rolled(i, None if eps is None else eps[i], found, block, operands)
            if ebar is not None:
                decay = self.kappa**steps
                kept = {key: (decay * leaf).astype(leaf.dtype) for key, leaf in ebar[i].items()}
                trace = add(trace, kept)
            new.append(self.stored(i, trace))
        return (*super().update(eps, block, operands), *new)

    def _decays(self, steps: int, dtype: Any) -> jax.Array:
        """``kappa^{K-t}`` for t = 1..K."""
        return self.kappa ** jnp.arange(steps - 1, -1, -1, dtype)

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The filtered trace of a link by trainable key."""
        return super().of_link(self._halves(traces)[1], index)
