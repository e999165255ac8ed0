# SPDX-License-Identifier: Apache-2.0
"""e-prop: D-RTRL whose traces pass a low-pass filter before they meet the learning signal.

    eps^t  = D^t eps^{t-1} + f^t (x) x^t
    ebar^t = kappa ebar^{t-1} + eps^t
    dL/dw  = sum_t <l^t, ebar^t> + <e^t, ebar^{t-1}>

(Bellec et al., Nature Communications 11:3625, 2020, doi 10.1038/s41467-020-17236-y.) Over a block,
the filter moves over to the signal, ``mbar^t = l^t + e^{t+1} + kappa mbar^{t+1}``, which then runs
backward through ``D`` as in D-RTRL. The filtered trace leaves the block with filtered suffix
products, ``Q^t = kappa^{K-t} + Q^{t+1} D^{t+1}``.

This is the rule as it was published, ``downstream='step'``. The filter stands for the leak of a
readout, and belongs behind the derivative of what a layer emits,

    ebar^t = kappa ebar^{t-1} + (dz^t / dh^t) eps^t,

which is D-RTRL of a step with a filter there (``compiler.uniform``), as it is done otherwise. The
readout's own weights have no filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..ops.operation import Arrays
from .base import Block, Cotangents, OldSignals, Operands, Traces
from .block_algebra import accumulate
from .d_rtrl import ParamDimRule


@dataclass(frozen=True, eq=False)
class EPropRule(ParamDimRule):
    """The learning rule e-prop for one compiled model, whose traces are filtered.

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
    >>> published = {"kappa_filter_decay": 0.9, "downstream": "step"}
    >>> learner = braintrace.compile(cell, "eprop", x, batch_size=2, **published)
    >>> from braintrace.algorithms import EPropRule
    >>> isinstance(learner.rule, EPropRule)
    True
    >>> learner.rule.of_link(learner.rule.init(), 0)["weight"].shape
    (2, 7, 4, 1)
    """

    adds_up_parts = True

    kappa: float = 0.0

    @property
    def name(self) -> str:
        return f"e-prop, kappa {self.kappa:.3g}"

    def init(self) -> Traces:
        """Traces of zeros."""
        return (*super().init(), *super().init())

    def _halves(self, traces: Traces | None) -> tuple[Any, Any]:
        """``eps`` and ``ebar``, if there are any."""
        n = len(self.links)
        return (None, None) if traces is None else (traces[:n], traces[n:])

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        def filtered(carried: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            carried = now + self.kappa * carried
            return carried, carried

        signals, of_eps, of_ebar = {}, {}, {}
        for g in (group.index for group in self.executor.driven):
            total, first = accumulate(None, block.signal[g], block.old_signal[g])
            last, signal = jax.lax.scan(filtered, jnp.zeros_like(total[0]), total, reverse=True)
            # mbar^0 without l^0, for the trace that enters
            of_ebar[g] = self.kappa * last if first is None else self.kappa * last + first
            signals[g], of_eps[g] = accumulate(block.jacobians.transition[g], signal, None)
        eps, ebar = self._halves(traces)
        found = [self.contracted(link, block, signals, operands) for link in self.links]
        found = self.with_entries(found, eps, of_eps, operands)
        return self.summed(self.with_entries(found, ebar, of_ebar, operands), operands)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        return super().solve_at_start(self._halves(traces)[1], signal, operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        eps, ebar = self._halves(traces)
        steps = block.jacobians.f[0].shape[0] if self.links else 0
        kept = None if ebar is None else [self._decayed(one, self.kappa**steps) for one in ebar]
        decays = self.kappa ** jnp.arange(steps - 1.0, -1, -1)
        new = self.moved(eps, block, operands, decays, kept)
        return (*super().update(eps, block, operands), *map(self.stored, self.links, new))

    def _decayed(self, trace: Arrays, factor: float) -> Arrays:
        """A trace times a number; what is no number of it (a place in a table) stays."""
        return {
            key: (factor * v).astype(v.dtype) if jnp.issubdtype(v.dtype, jnp.inexact) else v
            for key, v in trace.items()
        }

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The filtered trace of a link by trainable key."""
        return super().of_link(self._halves(traces)[1], index)
