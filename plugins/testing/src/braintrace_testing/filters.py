# SPDX-License-Identifier: Apache-2.0
r"""Rules that meet each state by itself, with uniform states: these have filters below them.

Random feedback, a modulator and the noise of UORO are defined on the states that have traces. With
uniform states ``u`` these are the members of a home and, for each of its ends ``z``, a *filter*:

    Q_{u,z}^t = lambda_u^t Q_{u,z}^{t-1} + Z^t,      M_u^t = sum_z A_{u,z} Q_{u,z}^t + ...,

with ``Z`` the influence on ``z`` by the paths of the home, and ``A`` that of ``z`` on ``u`` by its
region, which is the same at all steps but for a factor of ``Z``; where ``u`` has several leaks,
there is a filter for each. An end that is another uniform state has the filters of that one below
it, in the place of ``Z``. Both are sums over the paths of the step as it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .downstream import (
    LayersRecord,
    PathSums,
    influences_of,
    near_rows,
    record_layers,
)
from .graph import across_layers, build_graph
from .homes import find_layers
from .lasting import HELD, NOWHERE, OPEN, OPEN_HELD, START, Lasting, Mode
from .learn import OracleResult, by_path
from .paths import NEAR, product
from .program import Edge
from .records import Run, run_steps
from .regions import Home, Layers
from .step import Path, Step, trace_step


@dataclass(frozen=True)
class Filter:
    """A filter of a uniform state: what it passes to rows of these, reached near or not.

    ``keeps``, ``takes``: the factors by which each entry keeps its value and takes in its end, at
    all steps. ``below``: the filter in front of it, and whether it is read as it was a step before.
    """

    uniform: int
    end: int
    near: np.ndarray
    held: np.ndarray
    keeps: np.ndarray
    takes: np.ndarray
    below: tuple[int, bool] | None = None


@dataclass(frozen=True)
class TracedStep:
    """One step of the states of a home: ``M^t = K M^{t-1} + increments``, and their signals."""

    K: np.ndarray
    increments: dict[int, np.ndarray]
    l: np.ndarray  # noqa: E741
    e: np.ndarray


@dataclass(frozen=True)
class TracedStates:
    """The states of a home: members with their entries, then one for each filter.

    ``shape`` is that of their positions, ``counts`` are states of a position, by member.
    ``number``: of the group of the members; -1 where there is none.
    """

    number: int
    shape: tuple[int, ...]
    counts: tuple[int, ...]
    steps: tuple[TracedStep, ...]

    def laid(self, values: np.ndarray) -> np.ndarray:
        """Numbers ``[S, *positions]`` as the entries lie."""
        parts = np.split(values, np.cumsum(self.counts)[:-1])
        return np.concatenate([np.moveaxis(part, 0, -1).ravel() for part in parts])

    def positions(self) -> np.ndarray:
        """The number of the position of each entry."""
        numbers = np.arange(math.prod(self.shape)).reshape(self.shape)
        return self.laid(np.broadcast_to(numbers, (sum(self.counts), *self.shape)))


@dataclass(frozen=True)
class Traced:
    """A sequence: the states that have traces, and the gradient that needs none of these.

    ``of_uniform``: with traces of their own, ``U`` of each uniform state at each step.
    """

    step: Step
    layers: Layers
    runs: Sequence[Run]
    homes: tuple[TracedStates, ...]
    rest: np.ndarray
    of_uniform: tuple[np.ndarray, ...] = ()

    def result(self, grad: np.ndarray) -> OracleResult:
        """The result of a rule with this gradient."""
        graph, equations = self.layers.graph, self.layers.graph.program.equations
        return OracleResult(
            loss=np.stack([now.loss for now in self.runs]),
            outputs=jax.tree.map(lambda *leaves: np.stack(leaves), *(r.out for r in self.runs)),
            grads=by_path(self.step, graph, grad),
            influences={},
            groups=tuple(tuple(h.path for h in members) for members in graph.groups),
            relations=(),
            names={r: equations[r].primitive.name for r in self.layers.operations},
            steps=(),
        )


# --- from a step with uniform states to filters ----------------------------------------------


@dataclass(frozen=True)
class _Regions:
    """What the regions of uniform states pass on at one step."""

    layers: Layers
    sums: PathSums

    def passed(self, k: int, source: int) -> tuple[np.ndarray, np.ndarray]:
        """From a value to a uniform state, without and with an ETP equation between."""
        u = self.layers.uniform[k]

        def rule(edge: Edge, mode: Mode) -> Mode | None:
            if edge not in u.edges:
                return None
            return (HELD if edge.crosses or mode[0] == HELD else NEAR), NOWHERE

        reached, n = self.sums.sums([(source, (NEAR, NOWHERE))], rule), self.sums.size(source)
        near, held = (self.sums.arrived(reached, n, [(u.hidden.new, m)]) for m in (NEAR, HELD))
        return near, held

    def leaks(self, k: int) -> np.ndarray:
        """The leak of a uniform state: ``[examples, positions]``, or of one example."""
        own = self.layers.uniform[k].hidden
        matrix, _ = self.passed(k, own.old)
        leak = np.diagonal(matrix).reshape(own.varshape)
        if np.any(matrix != np.diag(leak.ravel())):
            raise ValueError(f"{own.path} has no leak: it moves its old value to other positions")
        return leak.reshape(len(leak) if leak.ndim > 1 else 1, -1)


def _filters(steps: Sequence[_Regions], home: Home) -> list[Filter]:
    """The filters of a home, each behind the one that is in front of it."""
    layers = steps[0].layers
    found: list[Filter] = []
    for k, z in sorted(home.filters):
        found += _of_end(steps, k, z, [now.passed(k, z) for now in steps])
    for i, lower in enumerate(found):  # which grows
        below = layers.uniform[lower.uniform].hidden
        for k, u in enumerate(layers.uniform):
            for v in sorted({below.old, below.new} & u.ends if k != lower.uniform else ()):
                if (k, v) not in layers.held | layers.loops:
                    passed = []
                    for now in steps:
                        near, held = now.passed(k, v)
                        onward = product(near, lower.held) + product(held, lower.near + lower.held)
                        passed.append((product(near, lower.near), onward))
                    found += _of_end(steps, k, lower.end, passed, (i, v == below.old))
    return found


def _of_end(
    steps: Sequence[_Regions],
    k: int,
    end: int,
    passed: Sequence[tuple[np.ndarray, np.ndarray]],
    below: tuple[int, bool] | None = None,
) -> Iterator[Filter]:
    """A filter for each leak: what is passed is the same at all steps, but for a factor."""
    layers = steps[0].layers
    hidden, shape = layers.uniform[k].hidden, layers.graph.program.avals[end].shape
    rows = np.stack([np.concatenate(both) for both in passed])
    largest = (rows**2).sum(1).argmax(0)
    steady = np.take_along_axis(rows, largest[None, None], 0)[0]
    size = (steady**2).sum(0)
    takes = (rows * steady).sum(1) / np.where(size == 0, 1, size)
    if not np.allclose(takes[:, None] * steady, rows, rtol=1e-12, atol=1e-14):
        raise ValueError(f"{hidden.path} is driven by more than a factor that changes")
    leaks = np.stack([now.leaks(k) for now in steps])
    count, examples, positions = leaks.shape
    every, number = np.unique(leaks.reshape(-1, positions), axis=1, return_inverse=True)
    for part, leak in enumerate(every.T):
        keeps = leak.reshape(count, examples)
        each = math.prod(shape) if not np.ptp(keeps, axis=1).any() else math.prod(shape[1:])
        keeps = np.repeat(keeps[:, : math.prod(shape) // each], each, axis=1)
        own = np.tile(np.ravel(number) == part, 2 * examples)[:, None]
        near, held = np.split(np.where(own, steady, 0.0), 2)
        yield Filter(k, end, near, held, keeps, takes, below)


def _to_uniform(layers: Layers, filters: Sequence[Filter], sizes: Sequence[int]) -> np.ndarray:
    """From filters to uniform states, those that were reached near and then the others."""
    columns = []
    for one, size in zip(filters, sizes, strict=True):
        rows = [
            part if k == one.uniform else np.zeros((u.hidden.positions.size, size))
            for part in (one.near, one.held)
            for k, u in enumerate(layers.uniform)
        ]
        columns.append(np.concatenate(rows))
    empty = np.zeros((2 * sum(u.hidden.positions.size for u in layers.uniform), 0))
    return np.concatenate([empty, *columns], axis=1)


@dataclass(frozen=True)
class _OfHome:
    """The states of one home, from step to step."""

    layers: Layers
    number: int
    scope: str
    kappa: float | None
    near: bool
    filters: Sequence[Filter]

    @property
    def home(self) -> Home:
        return self.layers.homes[self.number]

    @property
    def shape(self) -> tuple[int, ...]:
        ends = [self.layers.graph.program.avals[z].shape for _, z in sorted(self.home.filters)]
        return tuple([*(h.varshape for h in self.home.members), *ends][0])

    @property
    def sizes(self) -> list[int]:
        return [math.prod(self.shape)] * len(self.filters)

    def split(self) -> np.ndarray:
        """From members and filters to members and uniform states."""
        own = sum(h.positions.size for h in self.home.members)
        lower = _to_uniform(self.layers, self.filters, self.sizes)
        return np.block(
            [
                [np.eye(own), np.zeros((own, lower.shape[1]))],
                [np.zeros((len(lower), own)), lower],
            ]
        )

    def traced(self, steps: tuple[TracedStep, ...]) -> TracedStates:
        """The states, with their steps."""
        paths = {h.path for h in self.home.members}
        groups = enumerate(self.layers.graph.groups)
        own = [g for g, members in groups if paths.intersection(h.path for h in members)]
        counts = [*(h.num_state for h in self.home.members), *[1] * len(self.filters)]
        return TracedStates([*own, -1][0], self.shape, tuple(counts), steps)

    def at(self, run: Run, now: LayersRecord, t: int, U: Any, U_old: Any) -> TracedStep:
        sums, rules = PathSums(self.layers, run.jacobians), Lasting(self.layers, self.near)
        home, whole, split = self.home, self.scope != "diagonal", self.split()
        rule = rules.kept(home)
        olds = [(h.old, (OPEN if whole else NEAR, NOWHERE)) for h in home.members]
        for base in (OPEN, OPEN_HELD) if whole else (NEAR, HELD):
            olds += [(u.hidden.old, (base, NOWHERE)) for u in self.layers.uniform]
        K = product(self.rows(sums, olds, rule), split)
        if self.scope != "full":
            K = K * (self.positions[:, None] == self.positions)
        K = self.filtered(K, t, leaks=True)
        increments = {}
        for r, dY in now.dY.items():
            F = self.rows(sums, [(self.layers.graph.y(r), (NEAR, NOWHERE))], rule)
            increments[r] = product(F, dY)
            for name, value in (("new", U[r]), ("old", U_old[r])):
                first, of_uniform = 0, near_rows(value)
                for k, u in enumerate(self.layers.uniform):
                    source = [(getattr(u.hidden, name), (START, NOWHERE))]
                    G = self.rows(sums, source, rules.kept(home, k))
                    increments[r] += product(G, of_uniform[first : first + G.shape[1]])
                    first += G.shape[1]
            increments[r] = self.filtered(increments[r], t, leaks=False)
        l, e = (signal[self.number] @ split for signal in (now.l, now.e))  # noqa: E741
        return TracedStep(K, increments, l, e)

    @property
    def positions(self) -> np.ndarray:
        """The number of the position of each member entry, and of those of filters."""
        position = np.arange(math.prod(self.shape))
        own = (h.positions for h in self.home.members)
        return np.concatenate([*own, *[position] * len(self.filters)])

    def rows(self, sums: PathSums, sources: Any, rule: Any) -> np.ndarray:
        """From values to the members, and to the ends of filters: ``[n, sources]``."""
        n = sum(self.layers.graph.program.size(v) for v, _ in sources)
        reached, home = sums.sums(sources, rule), self.home
        found = [sums.arrived(reached, n, [(h.new, None) for h in home.members])]
        for one in self.filters:
            if one.below is not None:
                found.append(np.zeros((math.prod(self.shape), n)))
                continue
            modes = reached.get(one.end, {}).items()
            terms = (m for (base, _), m in modes if base != HELD)
            found.append(sum(terms, np.zeros((math.prod(self.shape), n))))
        return np.concatenate(found)

    def filtered(self, rows: np.ndarray, t: int, leaks: bool) -> np.ndarray:
        """The rows of filters, in which what drives them is to be found, with what they keep."""
        rows, size = rows.copy(), math.prod(self.shape)
        first = len(rows) - size * len(self.filters)
        own = [slice(first + i * size, first + (i + 1) * size) for i in range(len(self.filters))]
        for at, one in zip(own, self.filters, strict=True):
            lower = None if one.below is None else own[one.below[0]]
            if one.below is None or lower is None or not one.below[1]:
                rows[at] = one.takes[t][:, None] * rows[at if lower is None else lower]
            elif leaks:
                rows[at, lower] += np.diag(one.takes[t])
            if leaks:
                kept = one.keeps[t] if self.kappa is None else np.full(size, self.kappa)
                rows[at, at] += np.diag(kept)
        return rows


def traced_states(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    *,
    uniform: Iterable[Path] | None,
    groups: Sequence[Sequence[Path]] | None,
    scope: str,
    kappa: float | None = None,
    near: bool = False,
) -> Traced:
    """The states that have traces, filters among them.

    ``near``: uniform states keep traces of their own, too. ``uniform=None``: there are none, and
    layers are as they are published.

    Raises
    ------
    ValueError
        When what drives a uniform state changes by more than a factor, or uniform states with
        traces lead to one another.
    """
    step, named = trace_step(model, sequences, loss_fn), tuple(map(tuple, uniform or ()))
    graph = build_graph(step, groups)
    runs = list(run_steps(step, graph, sequences))
    if groups is None and uniform is not None:
        graph = across_layers(graph, [now.jacobians for now in runs], {*named})
    layers = find_layers(graph, named, runs, near)
    kept = "coupled" if scope == "full" else scope
    records = [record_layers(layers, now, kept, near) for now in runs]
    found = _filters_of_homes(layers, runs)
    if near and any(one.below for filters in found for one in filters):
        raise ValueError("uniform states with traces lead to one another")
    homes = [_OfHome(layers, a, scope, kappa, near, own) for a, own in enumerate(found)]
    rest = np.sum([now.direct for now in records], axis=0)
    steps: list[list[TracedStep]] = [[] for _ in homes]
    of_uniform = []
    walk = zip(runs, influences_of(layers, records), strict=True)
    for t, (run, (now, (U, _), (U_old, _))) in enumerate(walk):
        if near:
            half, own = len(now.plain) // 2, sum(U[r] for r in layers.operations) + 0 * now.plain
            rest = rest + product(now.l_u, now.plain) + product(now.l_u[half:], own[half:])
            held = (product(now.e_u[r][half:], U_old[r][half:]) for r in layers.operations)
            of_uniform.append(near_rows(own))
        else:
            rest = rest + sum(product(now.l_u, rows) for rows in U.values())
            held = (product(now.e_u[r], rows) for r, rows in U_old.items())
        rest = rest + sum(held)
        for of_steps, states in zip(steps, homes, strict=True):
            of_steps.append(states.at(run, now, t, U, U_old))
    traced = [states.traced(tuple(of)) for states, of in zip(homes, steps, strict=True)]
    return Traced(step, layers, runs, tuple(traced), rest, tuple(of_uniform))


def learn_coupled(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    *,
    uniform: Iterable[Path],
    groups: Sequence[Sequence[Path]] | None,
) -> OracleResult:
    """D-RTRL in the scope ``'coupled'``, where uniform states may lead to what drives them.

    That is recurrent input of filters at equal positions, which they must be apart for.
    """
    traced = traced_states(
        model, sequences, loss_fn, uniform=uniform, groups=groups, scope="coupled"
    )
    return traced.result(carried_by(traced, lambda states, signal, _: signal))


def _filters_of_homes(layers: Layers, runs: Sequence[Run]) -> list[list[Filter]]:
    """The filters of each home, which are those of all steps."""
    regions = [_Regions(layers, PathSums(layers, now.jacobians)) for now in runs]
    return [_filters(regions, home) for home in layers.homes]


# --- the rules -------------------------------------------------------------------------------


def carried_by(
    traced: Traced, signals: Callable[[TracedStates, np.ndarray, int], np.ndarray], old: bool = True
) -> np.ndarray:
    """D-RTRL with ``signals(states, l or e, step)``; ``old``: whether there is an ``e``."""
    grad = traced.rest
    for states in traced.homes:
        M: dict[int, Any] = dict.fromkeys(states.steps[0].increments, 0.0)
        for t, now in enumerate(states.steps):
            e, l = (signals(states, signal, t) for signal in (now.e, now.l))  # noqa: E741
            for r, fresh in now.increments.items():
                before = M[r] if t else np.zeros_like(fresh)
                M[r] = product(now.K, before) + fresh
                grad = grad + product(l, M[r]) + (product(e, before) if old else 0.0)
    return grad
