# SPDX-License-Identifier: Apache-2.0
"""D-RTRL without traces of delay lines: what they hold follows from the last steps.

The step of a line that is ``k`` steps old has the trace that its unit had ``k`` steps ago. Kept as
traces, a line of ``n`` steps would take ``n`` times the memory of the weights for every example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.precision import sum_dtype
from ..base.types import bytes_of
from ..compiler.reach import Pattern
from ..executor.executor import Executor
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..jaxprs.depends import Along, program_influences, slice_to
from ..jaxprs.run import read, run_equations
from ..ops.operation import Arrays
from ..ops.traces.bands import Bands
from .base import Block, Cotangents, Entries, Operands, ParameterTraces, Traces, add
from .block_algebra import apply, turned
from .d_rtrl import ParamDimRule
from .lagged import LaggedDRTRLRule, needs_weights


class Records(NamedTuple):
    """What is kept of steps: every input once, and of ``f`` and ``D`` what is not known anyway.

    Attributes
    ----------
    x
        Inputs by the number of the first relation with it [L, *X].
    f
        Per link, the states that it drives [L, d, *E, *Y].
    transition
        Per group, those bands of ``D`` that change from step to step, or all of it.
    """

    x: dict[int, Any]
    f: tuple[Any, ...]
    transition: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class DelayedDRTRLRule(LaggedDRTRLRule):
    """D-RTRL that keeps the last ``lag`` steps, and traces from before them.

    With ``R`` the states that reach a new value over any number of steps, and all others forgotten
    after ``L`` steps,

        eps^t = P_L^t [:, R] eps^{t-L}[R] + sum_{k < L} (P_k^t f^{t-k}) (x) x^{t-k},

    with ``P_k^t = D^t .. D^{t-k+1}``, so that the trace of ``R`` is kept as it was ``L`` steps ago,
    and of the steps since then what is of the size of the activity. A signal is pulled back through
    these as through those of a block.
    For ``L = 1`` it is :class:`LaggedDRTRLRule`. The gradients are those of D-RTRL.

    Traces are a dict of arrays [R, ..] per link, and then :class:`Records`.
    """

    adds_up_parts = True

    lag: int = field(default=1, kw_only=True, metadata={"saved": False})

    @property
    def saved_as(self) -> str:
        """The name of the rule in files."""
        return f"{type(self).__name__} of {self.lag} steps"

    def _states(self, link: Link) -> tuple[int, ...]:
        return reaching(self.executor.passing(link.group.index), self.lag)[0]

    # --- records ----------------------------------------------------------------------------------

    @cached_property
    def _steady(self) -> dict[tuple[int, int], Callable[[], jax.Array]]:
        """By group and band, the entries of ``D`` that are the same at every step."""
        executor = self.executor

        def bands(*values: Any) -> Any:
            found = executor.jacobians_at(values).transition
            return {g: found[g].values for g in executor.bands}

        avals = [var.aval for var in executor.inputs_of_jacobians]
        program = versions.make_jaxpr(bands, *avals)
        moving = [bool(behind) for behind in program_influences(program, Along.VALUES)]
        places = [(g, n) for g, own in sorted(executor.bands.items()) for n in range(len(own))]
        steady = dict(zip(places, program.outvars, strict=True))

        def value(atom: Any) -> jax.Array:
            env = versions.constants(program)
            chosen = slice_to(program.eqns, [atom], along=Along.EQUATIONS)
            run_equations([program.eqns[i] for i in chosen], env)
            return jnp.asarray(read(env, atom))

        return {
            place: partial(value, atom)
            for (place, atom), moves in zip(steady.items(), moving, strict=True)
            if not moves
        }

    def _driven(self, link: Link) -> np.ndarray:
        return np.flatnonzero(self.executor.driving(link.index))

    def _kept(self, step: StepJacobians) -> Records:
        """What is kept of steps [K, ..], in the dtypes of traces."""

        def moving(g: int, D: Any) -> Any:
            if not isinstance(D, Bands):
                return D
            return tuple(v for n, v in enumerate(D.values) if (g, n) not in self._steady)

        x = {r: step.x[r] for r in sorted({*self.executor.sources.values()})}
        f = (step.f[link.index][:, self._driven(link)] for link in self.links)
        found = Records(x, tuple(f), tuple(moving(*pair) for pair in enumerate(step.transition)))
        return jax.tree.map(lambda v: v.astype(sum_dtype(v.dtype)), found)

    def _whole(self, records: Records) -> StepJacobians:
        """The steps of which records [K, ..] are kept."""
        sources = self.executor.sources
        relations = self.executor.graph.hidden_param_op_relations
        x = tuple(records.x.get(sources.get(r.index, -1)) for r in relations)
        f, (steps, *_) = [], jax.tree.leaves(records.f)[0].shape
        for link in self.links:
            own, rows = records.f[link.index], self._driven(link)
            shape = (steps, link.group.num_state, *own.shape[2:])
            f.append(jnp.zeros(shape, own.dtype).at[:, rows].set(own))
        return StepJacobians(
            x, tuple(f), tuple(self._matrix(g, D, steps) for g, D in enumerate(records.transition))
        )

    def _matrix(self, g: int, kept: Any, steps: int | None = None) -> Any:
        """``D`` of one step, or of several, from what is kept."""
        if (bands := self.executor.bands.get(g)) is None or kept is None:
            return kept
        moving, values = iter(kept), []
        for n in range(len(bands)):
            if (g, n) in self._steady:
                value = self._steady[g, n]()
                lead = () if steps is None else (steps,)
                values.append(jnp.broadcast_to(value, (*lead, *value.shape)))
            else:
                values.append(next(moving))
        return Bands(tuple(values), bands, self.executor.groups[g].num_state)

    def init(self) -> Traces:
        """Traces of zeros, after steps of zeros."""
        types = self.executor.jacobian_types
        one = jax.tree.map(lambda v: jax.ShapeDtypeStruct((self.lag, *v.shape), v.dtype), types)
        kept = jax.eval_shape(self._kept, one)
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), kept)
        return (*ParamDimRule.init(self), zeros)

    # --- the rule ---------------------------------------------------------------------------------

    def with_entries(
        self, found: Cotangents, traces: Traces | None, entries: Entries, operands: Operands
    ) -> Cotangents:
        """``found`` plus what signals find in the traces of all states.

        They are pulled back through the kept steps, and meet the trace before them.
        """
        known = {g: entry for g, entry in entries.items() if entry is not None}
        if traces is None or not known:
            return list(found)
        before, met = jax.lax.scan(self._backward, known, traces[-1], reverse=True)
        total, x = list(found), self._inputs(traces[-1])
        for link in self.links:
            if link.index in met:
                held = operands[link.relation.index]
                recorded = x[link.relation.index], met[link.index], held
                own = link.operation.contract(*recorded, self.parts)
                total[link.index] = add(total[link.index], own)
        return ParameterTraces.with_entries(self, total, traces, before, operands)

    def _inputs(self, records: Records) -> dict[int, Any]:
        sources = self.executor.sources
        return {
            link.relation.index: records.x.get(sources.get(link.relation.index, -1))
            for link in self.links
        }

    @cached_property
    def _backward(self) -> Callable[..., Any]:
        """A step of the scan that pulls signals at new values [S, *V] back."""

        def step(signals: Mapping[int, jax.Array], kept: Records) -> Any:
            met, olds = {}, {}
            for link in self.links:
                if (signal := signals.get(link.group.index)) is not None:
                    rows = link.to_y(signal[self._driven(link)], 1)
                    met[link.index] = link.sum_to_y((kept.f[link.index] * rows).sum(0), 0)
            for g, signal in signals.items():
                matrix = self._matrix(g, kept.transition[g])
                old = jnp.zeros_like(signal) if matrix is None else apply(turned(matrix), signal)
                olds[g] = old.astype(signal.dtype)
            return olds, met

        return step

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> Cotangents:
        """From the traces after a single step, which hold the step."""
        of_old = any(e is not None for e in block.old_signal)
        if traces is None or of_old or not self.reads_new(block):
            return self.solve(traces, block, operands)
        now = {g.index: block.signal[g.index][0] for g in self.executor.driven}
        found = self.with_entries([{} for _ in self.links], new, now, operands)
        return self.summed(found, operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces of ``lag`` steps ago, and what is kept of the steps since then."""
        new = self._kept(block.jacobians)
        steps, lag = len(new.f[0]), self.lag
        held = self.init()[-1] if traces is None else traces[-1]
        new = jax.tree.map(lambda v, own: v.astype(own.dtype), new, held)
        if steps < lag:
            pushed = jax.tree.map(lambda v: v[:steps], held)
            kept = jax.tree.map(lambda v, w: jnp.concatenate([v[steps:], w]), held, new)
        else:
            pushed, kept = held, jax.tree.map(lambda v: v[steps - lag :], new)
        moved = traces
        if traces is not None:
            old = block._replace(jacobians=self._whole(pushed))
            moved = ParamDimRule.update(self, moved, old, operands)
        if steps > lag:
            rest = jax.tree.map(lambda v: v[: steps - lag], block.jacobians)
            moved = ParamDimRule.update(self, moved, block._replace(jacobians=rest), operands)
        return (*(ParamDimRule.init(self) if moved is None else moved[: len(self.links)]), kept)

    def of_link(self, traces: Traces, index: int) -> Arrays:
        """The trace of a link by trainable key, of all states; [B, in, out, S]."""
        params = {weight.path: state.value for state, weight in self.executor.weights.items()}
        operands, rule = self.executor.operand_values(params), ParamDimRule(self.executor)
        spread = []
        for link, kept in zip(self.links, traces, strict=False):
            rules, places = rule.rules[link.index], np.array(self._states(link), int)
            spread.append(rules.spread(kept, places) if kept else rules.init())
        block = Block(self._whole(traces[-1]), (), ())
        trace = rule.moved(tuple(spread), block, operands)[index]
        return {key: jnp.moveaxis(leaf, 0, -1) for key, leaf in trace.items()}

    def held_by(self, traces: Traces, index: int) -> Arrays:
        """What is held for a link: the kept trace, or the factors of the last steps."""
        return traces[index] or {"f": traces[-1].f[index]}


@lru_cache
def reaching(pattern: Pattern, most: int) -> tuple[tuple[int, ...], int]:
    """The states that reach a new value over so many steps, and from which number on the same."""
    known: Any = np.array(pattern, bool)
    found: Any = np.ones(len(pattern), bool)
    for steps in range(most):
        before, found = found, known[found].any(0)
        if (before == found).all():
            return tuple(int(j) for j in np.flatnonzero(found)), steps
    return tuple(int(j) for j in np.flatnonzero(found)), most


def lag_of(executor: Executor, dtype: Any = None) -> int:
    """After how many steps all is forgotten that is not kept for ever; 1 where that saves nothing.

    Only groups with a delay line are asked, and traces are compared with what is kept of the steps.
    """
    patterns = [executor.passing(g) for g in executor.bands]
    lag = max((1, *(reaching(pattern, len(pattern) + 1)[1] for pattern in patterns)))
    if lag == 1 or needs_weights(executor):
        return 1
    deep, plain = DelayedDRTRLRule(executor, dtype, lag=lag), ParamDimRule(executor, dtype)
    sizes = (bytes_of(jax.eval_shape(rule.init)) for rule in (deep, plain))
    return lag if next(sizes) < next(sizes) else 1
