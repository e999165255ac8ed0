# SPDX-License-Identifier: Apache-2.0
"""RTRL and SnAp-n of a whole step: the influence of every parameter on all that is carried.

    M^t = mask . ( J^t M^{t-1} + P^t )
    dL/dw = sum_t dL^t/dw + < dL^t/ds^{t-1}, M^{t-1} >

``s`` are all states that a parameter can reach, hidden or not, ``J`` and ``P`` the derivatives of
the new ones in the old ones and in the parameters, and ``dL^t`` the ordinary derivative of a step.
Without a mask it is exact (Williams & Zipser, Neural Computation 1:270, 1989): there is nothing
about groups, relations or positions in it, so it holds for every step.

SnAp-n (Menick et al. 2020, arXiv 2006.07232) keeps those entries of ``M`` whose parameter can reach
the state within ``n`` steps. ``mask`` says so by positions: states of a hidden group at the same
position are kept together. What a loss reads of new states meets the masked ``M^t``:

    dL/dw = sum_t < l^t, M^t > + < e^t, M^{t-1} > + direct part of step t

with ``l^t`` and ``e^t`` along the paths that meet no new state on their way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.precision import sum_dtype, wide_dtype, widened_dtype
from ..base.types import Path, bytes_of
from ..compiler.module_info import StateKind
from ..executor.by_states import ByStates, by_states
from ..executor.executor import Executor
from ..executor.joint_graph import joint_graph
from ..executor.layout import Positions
from ..executor.leaves import StateLeaf
from ..executor.tangents import (
    all_inputs,
    differentiated,
    has_singular_derivatives,
    kept_inputs,
    moved,
    run_cut,
)
from ..jaxprs.depends import Along, program_influences
from ..ops.operation import split
from .base import Block, Cotangents, LearningRule, OldSignals, Operands, Traces

NO_BLOCKS = "RTRL runs the steps themselves (run, after_steps, credit), and reads no block"


@dataclass(frozen=True, eq=False)
class InfluenceRule(LearningRule):
    """The learning rules RTRL and SnAp-n for one compiled model.

    Traces are an array [P, \\*s] for each state that is reached: the influence of every entry of
    the trained parameters, ``P`` in all.

    Parameters
    ----------
    executor
        A compiled executor.
    trace_dtype
        Dtype in which traces are kept; ``None``: that of the states, and float32 at least.
    order
        ``n`` of SnAp-n, from 1; ``None``: RTRL.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.RTRL, x, batch_size=2)
    >>> from braintrace.algorithms import InfluenceRule
    >>> isinstance(learner.rule, InfluenceRule)
    True
    >>> [trace.shape for trace in learner.rule.init()]
    [(96, 2, 4)]
    """

    executor: Executor
    trace_dtype: Any = None
    order: int | None = None

    from_blocks = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.masks  # noqa: B018  the position graph is found when compiling, not while tracing

    @property
    def name(self) -> str:
        return "RTRL" if self.order is None else f"SnAp-{self.order}"

    # --- what there is -----------------------------------------------------------------------

    def _leaves(self, *kinds: StateKind) -> tuple[StateLeaf, ...]:
        """The leaves of states of some kinds that have a derivative."""
        info = self.executor.graph.module_info
        return tuple(
            StateLeaf(place, slot.path, k, var.aval)
            for slot in info.slots
            if slot.kind in kinds
            for k, (place, var) in enumerate(zip(slot.leaves, info.invars_of(slot), strict=True))
            if versions.is_float(var.aval)
        )

    @cached_property
    def parameters(self) -> tuple[StateLeaf, ...]:
        """The trained parameters that reach a state; others act within their step alone."""
        info, frozen = self.executor.graph.module_info, self.executor.graph.frozen
        behind = self._behind()
        direct = frozenset().union(*(behind[s.place] for s in self._states))
        found = (p for p in self._leaves(StateKind.PARAM) if p.path not in frozen)
        return tuple(p for p in found if info.num_args + p.place in direct)

    @cached_property
    def _states(self) -> tuple[StateLeaf, ...]:
        return (*self._leaves(StateKind.HIDDEN), *self._leaves(StateKind.OTHER))

    def _behind(self) -> Sequence[frozenset[int]]:
        """For each new leaf of a state, the inputs with a derivative to it."""
        info = self.executor.graph.module_info
        return program_influences(info.jaxpr, Along.DERIVATIVES)[info.num_out :]

    @cached_property
    def carried(self) -> tuple[StateLeaf, ...]:
        """The states that a trained parameter reaches, in one step or several."""
        first, behind = self.executor.graph.module_info.num_args, self._behind()
        reached, count = {first + p.place for p in self.parameters}, -1
        while count != len(reached):
            count = len(reached)
            reached |= {first + s.place for s in self._states if behind[s.place] & reached}
        return tuple(s for s in self._states if first + s.place in reached)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where the entries of each parameter end."""
        return tuple(np.cumsum([p.size for p in self.parameters]).tolist())

    @property
    def num_entries(self) -> int:
        """``P``: entries of the trained parameters."""
        return self.ends[-1] if self.ends else 0

    @cached_property
    def masks(self) -> tuple[np.ndarray | None, ...]:
        """Per carried state, which entries of its trace are kept [P, \\*s]; ``None``: all."""
        if self.order is None or not self.carried:
            return (None,) * len(self.carried)
        groups = self.executor.graph.hidden_groups
        edges, starts, places = joint_graph(
            self.executor.graph.module_info, groups, self.parameters, self.carried
        )
        reached = starts
        for _ in range(self.order - 1):
            wider = reached | ((edges.astype(np.float32) @ reached) > 0)
            if np.array_equal(wider, reached):
                break
            reached = wider
        kept = [np.moveaxis(reached[own], -1, 0) for own in places]
        return tuple(None if mask.all() else mask for mask in kept)

    @cached_property
    def _singular(self) -> bool:
        return has_singular_derivatives(self.executor.graph.module_info)

    @property
    def in_single_steps(self) -> bool:  # type: ignore[override]
        """Reverse mode of several steps would count what the mask leaves out."""
        return any(mask is not None for mask in self.masks)

    @cached_property
    def by_states(self) -> ByStates | None:
        """Traces of several steps by rows of carried values, where that is possible and less."""
        info = self.executor.graph.module_info
        return by_states(info, self.parameters, self.carried, self._wide)

    @property
    def bytes_per_step(self) -> int:
        """What reverse mode may keep of a step: the result of every equation."""
        eqns = self.executor.graph.module_info.eqns
        rows = 0 if self.by_states is None else self.by_states.bytes_per_step
        own = [var.aval for eqn in eqns for var in eqn.outvars if var.aval.shape != ()]
        return bytes_of(own) + rows

    # --- steps -------------------------------------------------------------------------------

    def perturbations(self) -> list[jax.Array]:
        """Where a mask cuts paths short, one for each carried state: signals meet masked traces."""
        leaves = self.carried if self.in_single_steps else ()
        return [jnp.zeros(s.aval.shape, s.aval.dtype) for s in leaves]

    def run(self, args: Sequence[Any], states: Mapping[Path, Any], perturb: Any = ()) -> Any:
        """A step, which is kept as its inputs but the parameters; see :func:`run_cut`."""
        info = self.executor.graph.module_info
        flat = [leaf for slot in info.slots for leaf in jax.tree.leaves(states[slot.path])]
        outputs = run_cut(info, self.carried, [*args, *flat], perturb)
        out, new = self.executor.results(outputs)
        return out, new, kept_inputs(info, args, states)

    def init(self) -> Traces:
        return tuple(
            jnp.zeros((self.num_entries, *s.aval.shape), self._dtype(s)) for s in self.carried
        )

    def _dtype(self, state: StateLeaf) -> Any:
        """That of the state and of sums, or the one that was asked for."""
        if self.trace_dtype is None:
            return widened_dtype(state.aval.dtype, self._wide)
        own = jnp.dtype(self.trace_dtype)
        return jnp.promote_types(own, jnp.complex64) if state.is_complex else own

    @cached_property
    def _wide(self) -> Any:
        """The dtype that traces have at least: the widest of parameters and states."""
        return wide_dtype(*(leaf.aval.dtype for leaf in (*self.parameters, *self.carried)))

    def after_steps(
        self, traces: Traces | None, kept: Any, params: Mapping[Path, Any], first: Any = False
    ) -> Traces:
        """Traces after ``K`` steps, from what :meth:`run` kept of them.

        ``first``: whether there is nothing before the first of these, whatever the derivatives in
        old states are there.
        """
        start = self.init() if traces is None else traces
        if not self.carried:
            return ()
        if self.by_states is not None and not self.in_single_steps:
            known = traces and tuple(_unless(first, trace) for trace in traces)
            return self._kept(self.by_states.after(known, kept, params))

        def one(traces: Traces, now: Any) -> tuple[Traces, None]:
            number, kept = now
            if first is False:
                return self._moved(traces, kept, params), None
            begins = jnp.logical_and(first, number == 0)
            fresh = partial(self._moved, kept=kept, params=params, begins=True)
            goes_on = partial(self._moved, kept=kept, params=params)
            return jax.lax.cond(begins, fresh, goes_on, traces), None

        steps = jax.tree.leaves(kept)[0].shape[0]
        return jax.lax.scan(one, start, (jnp.arange(steps), kept))[0]

    def _moved(
        self, traces: Traces, kept: Sequence[Any], params: Mapping[Path, Any], begins: bool = False
    ) -> Traces:
        """The traces after a step."""
        return self._kept(self._unmasked(traces, kept, params, begins))

    def _kept(self, new: Sequence[jax.Array]) -> Traces:
        """What is kept of new traces, in its dtype."""
        return tuple(
            (m if mask is None else jnp.where(mask, m, 0)).astype(self._dtype(s))
            for m, mask, s in zip(new, self.masks, self.carried, strict=True)
        )

    def _unmasked(
        self, traces: Traces, kept: Sequence[Any], params: Mapping[Path, Any], begins: bool = False
    ) -> list[jax.Array]:
        """``J M + P``; ``P`` where nothing is before the step."""
        if self.by_states is not None:
            one = jax.tree.map(lambda v: jnp.asarray(v)[None], kept)
            return self.by_states.after(None if begins else traces, one, params)
        info = self.executor.graph.module_info
        inputs = all_inputs(info, kept, params)
        parameters, carried = (
            [leaf.widened(self._wide) for leaf in of] for of in (self.parameters, self.carried)
        )
        olds, before = ((), ()) if begins else (carried, traces)
        _, pull = differentiated(info, parameters, olds, carried, inputs)
        return moved(parameters, olds, carried, pull, before, self._singular)

    def left_out(self, traces: Traces, kept: Sequence[Any], params: Mapping[Path, Any]) -> Traces:
        """What the masks take from the traces after a step, ``(1 - mask) . J M``."""
        new = self._unmasked(traces, kept, params)
        pairs = zip(new, self.masks, strict=True)
        return tuple(jnp.zeros_like(m) if k is None else jnp.where(k, 0, m) for m, k in pairs)

    def credit(
        self,
        traces: Traces | None,
        olds: Mapping[Path, Any],
        params: Mapping[Path, Any],
        first: Any = False,
        after: Traces | None = None,
        signals: Sequence[Any] = (),
        parts: int = 1,
    ) -> dict[Path, Any]:
        """Gradients through the traces, by parameter.

        ``olds`` are gradients with respect to old states, by path, which meet the traces in front
        of these steps; ``signals`` those of perturbations, which meet the traces ``after`` them.
        With ``parts``, those of parts of the examples come first, where all states have them.
        """
        if not self.carried or (traces is None and after is None):
            return {}
        if any(s.aval.shape[:1] == () or s.aval.shape[0] % parts for s in self.carried):
            parts = 1
        found = jnp.zeros(self.num_entries)
        if traces is not None:
            leaves = (jax.tree.leaves(olds[s.path])[s.leaf] for s in self.carried)
            old = [v if v.dtype == jax.dtypes.float0 else _unless(first, v) for v in leaves]
            found = found + self._met(traces, old, parts)
        if after is not None and signals:
            found = found + self._met(after, signals, parts)
        return self._by_path(found, params)

    def _met(self, traces: Traces, signals: Sequence[Any], parts: int) -> jax.Array:
        """``< signal, M >`` [P] of all carried states; of several parts, [parts, P]."""

        product = partial(jnp.matmul, precision="highest")
        product = product if parts == 1 else jax.vmap(product)

        def rows(array: jax.Array, *lead: int) -> jax.Array:
            array = array if parts == 1 else split(array, len(lead), parts)
            return array.reshape(*(() if parts == 1 else (parts,)), *lead, -1)

        total: Any = 0.0
        for signal, trace in zip(signals, traces, strict=True):
            if signal.dtype != jax.dtypes.float0:
                dtype = sum_dtype(jnp.result_type(signal, trace))
                pair = rows(trace, self.num_entries).astype(dtype), rows(signal).astype(dtype)
                total = total + jnp.real(product(*pair))
        return jnp.broadcast_to(total, (*jnp.shape(total)[:-1], self.num_entries))

    def _by_path(self, entries: jax.Array, params: Mapping[Path, Any]) -> dict[Path, Any]:
        """Gradients of the parameters from their entries."""
        pieces, found = jnp.split(entries, self.ends[:-1], axis=-1), {}
        for path in dict.fromkeys(p.path for p in self.parameters):
            leaves, tree = jax.tree.flatten(params[path])
            new = [*map(versions.zero_cotangent, leaves)]
            for p, piece in zip(self.parameters, pieces, strict=True):
                if p.path == path:
                    new[p.leaf] = (jax.vmap(p.gradient) if piece.ndim > 1 else p.gradient)(piece)
            found[path] = jax.tree.unflatten(tree, new)
        return found

    # --- what the traces hold ----------------------------------------------------------------

    @property
    def traced_paths(self) -> tuple[Path, ...]:
        """The trained parameters, if anything that is carried depends on them."""
        return tuple(dict.fromkeys(p.path for p in self.parameters)) if self.carried else ()

    def of_parameter(self, traces: Traces, path: Path) -> list[dict[str, Any]]:
        """A dict per hidden group, laid out as for D-RTRL, and per other state [\\*w, states]."""
        held = {(s.path, s.leaf): m for s, m in zip(self.carried, traces, strict=True)}
        cones, arrays = self.executor.graph.cones, []
        for group, cone in zip(self.executor.graph.hidden_groups, cones, strict=True):
            positions = Positions(group, cone.transition.mixed if cone.transition else ())
            members = [
                held.pop((own, 0), jnp.zeros((self.num_entries, *v.aval.shape), v.aval.dtype))
                for own, v in zip(group.hidden_paths, group.hidden_invars, strict=True)
            ]
            arrays.append(jax.vmap(positions.stacked)(members))  # [P, S M, *kept]
        arrays += [array.reshape(self.num_entries, -1) for array in held.values()]
        return [self._laid(path, array) for array in arrays]

    def _laid(self, path: Path, array: jax.Array) -> dict[str, jax.Array]:
        """Of [P, S, \\*kept], what belongs to a parameter: by leaf, [\\*kept, \\*w, S]."""
        found = {}
        for p, end in zip(self.parameters, self.ends, strict=True):
            if p.path == path:
                w, rest = p.aval.shape, array.shape[1:]
                rows = array[end - p.size :][: math.prod(w)].reshape(*w, *rest)
                kept = range(len(w) + 1, rows.ndim)
                found[self._named(p)] = rows.transpose(*kept, *range(len(w) + 1))
        return found

    def _named(self, p: StateLeaf) -> str:
        """The key by which an operation trains a leaf, or else its own in the parameter."""
        trainables = (t for link in self.links for t in link.relation.trainables)
        known = next((t.key for t in trainables if (p.path, p.leaf) in t.leaves), None)
        slots = self.executor.graph.module_info.slots
        state = next(slot.state for slot in slots if slot.path == p.path)
        key = jax.tree_util.tree_leaves_with_path(state.value)[p.leaf][0]
        return known or jax.tree_util.keystr(key, simple=True, separator=".") or "value"

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """What is held for the first parameter of a link in the group of the link."""
        link = self.links[index]
        return self.of_parameter(traces, link.relation.weight_path)[link.group.index]

    # --- what blocks of other rules have -----------------------------------------------------

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        raise NotImplementedError(NO_BLOCKS)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        raise NotImplementedError(NO_BLOCKS)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        raise NotImplementedError(NO_BLOCKS)


def _unless(first: Any, signal: jax.Array) -> jax.Array:
    return signal if first is False else jnp.where(first, jnp.zeros_like(signal), signal)
