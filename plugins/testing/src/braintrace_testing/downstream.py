# SPDX-License-Identifier: Apache-2.0
"""D-RTRL, pp_prop and e-prop with credit that passes uniform states, as equations of influences.

With ``s`` the states and ``u`` the uniform ones among them, the influence of an operation on a home
``a`` (the states that recur together, and the uniform ones that they drive) is

    M_a^t = K_a^t M_a^{t-1} + F_a^t dY^t + G_a^t U^t + G'_a^t U^{t-1},
    U^t   = K_u^t U^{t-1} + F_u^t dY^t,

where ``K``, ``F`` and ``G`` are sums over the paths that a rule keeps from step to step: those that
cross no ETP equation, and those through the region of a uniform state. ``U`` is the influence of
what lies in the region itself, which is the whole one. Every other path is zero from step to step,
and counted in the step in which it is, in the signals that ``M`` and ``U`` are multiplied with.
Nothing here knows of filters, or moves a leak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from .graph import Graph, Hidden, across_layers, build_graph
from .homes import find_layers
from .lasting import HELD, KEPT, NOWHERE, OPEN, PLAIN, START, Inside, Lasting, Mode
from .learn import OracleResult, by_path
from .paths import NEAR, Change, Reached, path_sums, product
from .program import Edge
from .records import Run, Scope, input_of, run_steps, with_input
from .regions import Home, Layers
from .step import Path, trace_step

#: The number that stands for parameters outside of operations.
PLAIN_USE = -1


# --- one step --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PathSums:
    """Sums over the paths of one step."""

    layers: Layers
    jacobians: Sequence[np.ndarray]

    @property
    def graph(self) -> Graph:
        return self.layers.graph

    def size(self, variable: int) -> int:
        return self.graph.program.size(variable)

    def sums(
        self, sources: Sequence[tuple[int, Mode]], rule: Any, change: Change | None = None
    ) -> Reached:
        """With a column for each entry of the sources."""
        sizes = [self.size(v) for v, _ in sources]
        blocks = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
        reached: Reached = {}
        for (v, mode), block in zip(sources, blocks, strict=True):
            reached.setdefault(v, {})[mode] = block
        return path_sums(self.graph.program.edges, self.jacobians, reached, rule, change)

    def between(
        self, sources: Sequence[tuple[int, Mode]], rule: Any, targets: Sequence[tuple[int, Any]]
    ) -> np.ndarray:
        """``[targets, sources]``: targets in one mode or (``None``) in any."""
        n = sum(self.size(v) for v, _ in sources)
        return self.arrived(self.sums(sources, rule), n, targets)

    def arrived(self, reached: Reached, n: int, targets: Sequence[tuple[int, Any]]) -> np.ndarray:
        found = [np.zeros((0, n))]
        for v, wanted in targets:
            own = reached.get(v, {}).items()
            terms = (m for (base, _), m in own if wanted is None or base == wanted)
            found.append(sum(terms, np.zeros((self.size(v), n))))
        return np.concatenate(found)

    def at_positions(
        self,
        home: Home,
        sources: Sequence[tuple[int, Mode]],
        rule: Any,
        targets: Sequence[tuple[int, Any]],
        places: np.ndarray,
    ) -> np.ndarray:
        """The same at equal positions: of the members, and of what drives a region.

        ``places`` are those of the sources.
        """

        def entering(edge: Edge, before: Mode, after: Mode, matrix: np.ndarray) -> np.ndarray:
            inside = after[1] or edge.target in self.layers.number_of  # where it may end at once
            if before[1] or not inside or edge.source in self.layers.number_of:
                return matrix
            position = np.arange(math.prod(self.graph.program.avals[edge.source].shape))
            return matrix * _equal(np.resize(position, len(matrix)), places)

        own = len(home.members)
        members = self.between(sources, rule, targets[:own]) * _equal(
            np.concatenate([np.zeros(0, int), *(h.positions for h in home.members)]), places
        )
        reached = self.sums(sources, rule, entering)
        return np.concatenate([members, self.arrived(reached, len(places), targets[own:])])

    def from_regions(
        self,
        rules: Lasting,
        home: Home,
        name: str,
        targets: Sequence[tuple[int, Any]],
        places: np.ndarray | None = None,
    ) -> np.ndarray:
        """From values of uniform states to a home; with ``places`` of these, at equal positions."""
        columns, first = [np.zeros((sum(self.size(v) for v, _ in targets), 0))], 0
        for k, u in enumerate(self.layers.uniform):
            source, rule = [(getattr(u.hidden, name), (START, NOWHERE))], rules.kept(home, k)
            last = first + u.hidden.positions.size
            if places is None:
                columns.append(self.between(source, rule, targets))
            else:
                own = places[first:last]
                columns.append(self.at_positions(home, source, rule, targets, own))
            first = last
        return np.concatenate(columns, axis=1)

    def to_loss(self, sources: Sequence[tuple[int, Mode]], rule: Any) -> np.ndarray:
        return np.asarray(self.between(sources, rule, [(self.graph.loss, None)])[0])


@dataclass(frozen=True)
class LayersRecord:
    """A step: the matrices of the equations above, and what they are multiplied with.

    The rows of a home are its members, then the uniform states twice, those that were reached
    across no ETP equation first; the rows of ``U`` are the latter. ``plain``: the increment of
    ``U`` of parameters outside of operations.
    """

    K: list[np.ndarray]
    F: dict[tuple[int, int], np.ndarray]
    G: list[np.ndarray]
    G_at: list[np.ndarray]
    G_old: list[np.ndarray]
    l: list[np.ndarray]  # noqa: E741
    e: list[np.ndarray]
    K_u: np.ndarray
    F_u: dict[int, np.ndarray]
    l_u: np.ndarray
    e_u: dict[int, np.ndarray]
    dY: dict[int, np.ndarray]
    dY_at: dict[int, Callable[[Any], np.ndarray]]
    x: dict[int, np.ndarray | None]
    plain: np.ndarray
    direct: np.ndarray


def record_layers(layers: Layers, run: Run, scope: str, near: bool) -> LayersRecord:
    sums, rules, graph = PathSums(layers, run.jacobians), Lasting(layers, near), layers.graph
    regions, n = layers.uniform, sum(map(graph.program.size, graph.leaves))

    def of_regions(name: str, near: Any = NEAR) -> list[tuple[int, Mode]]:
        values = [getattr(u.hidden, name) for u in regions]
        return [(v, (base, NOWHERE)) for base in (near, HELD) for v in values]

    def of(home: Home, name: str, base: Any = NEAR) -> list[tuple[int, Mode]]:
        own = [(getattr(h, name), (base, NOWHERE)) for h in home.members]
        return own + of_regions(name)

    arrivals = [(v, mode[0]) for v, mode in of_regions("new")]
    K, F, G, G_at, G_old, signals, olds = [], {}, [], [], [], [], []
    for a, home in enumerate(layers.homes):
        rule, to = rules.kept(home), [*((h.new, None) for h in home.members), *arrivals]
        sources = of(home, "old", OPEN if scope == "coupled" else NEAR)
        K.append(sums.at_positions(home, sources, rule, to, places_of(layers, home)))
        for r in layers.operations:
            F[r, a] = sums.between([(graph.y(r), (NEAR, NOWHERE))], rule, to)
        from_regions = partial(sums.from_regions, rules, home)
        G.append(from_regions("new", to))
        own = _places_above(layers, home) if near else None
        G_old.append(from_regions("old", to, own))
        if near:
            G_at.append(from_regions("new", to, own))
        signals.append(sums.to_loss(of(home, "new"), rules.signal(home)))
        olds.append(sums.to_loss(of(home, "old"), rules.around(home)))
    whole = rules.kept(None)
    F_u = {
        r: sums.between([(graph.y(r), (NEAR, rules.started(graph.y(r))))], whole, arrivals)
        for r in layers.operations
    }
    reached = sums.sums([(v, (PLAIN, NOWHERE)) for v in graph.leaves], rules.outside)
    total = sums.arrived(reached, n, [(graph.loss, None)])
    kept = sums.arrived(reached, n, [(u.hidden.new, KEPT) for u in regions])
    return LayersRecord(
        K=K,
        F=F,
        G=G,
        G_at=G_at,
        G_old=G_old,
        l=signals,
        e=olds,
        K_u=sums.between(of_regions("old"), whole, arrivals),
        F_u=F_u,
        l_u=sums.to_loss(
            [(u.hidden.new, ((NEAR, ~k), NOWHERE)) for k, u in enumerate(regions)]
            + [(u.hidden.new, (HELD, NOWHERE)) for u in regions],
            rules.outside,
        ),
        e_u=_old_signals(sums, rules),
        dY={r: sums.arrived(reached, n, [(graph.y(r), (NEAR, r))]) for r in layers.operations},
        dY_at={r: partial(with_input, graph, run.values, reached, r, n) for r in layers.operations},
        x={r: input_of(graph, run.values, r) for r in layers.operations},
        plain=product(
            sums.between(of_regions("new"), whole, arrivals),
            np.concatenate([np.zeros_like(kept), kept]),
        ),
        direct=total[0],
    )


def _old_signals(sums: PathSums, rules: Lasting) -> dict[int, np.ndarray]:
    """``e`` of uniform states, reached near and elsewhere, by operation.

    Where they are ``near``, it is that around the new value of the state from which they are
    reached: of itself, or of that in whose region the operation is.
    """
    layers = rules.layers
    regions = {r: layers.regions_of(layers.graph.y(r)) for r in layers.operations}
    regions[PLAIN_USE] = NOWHERE

    def signal(own: frozenset[int]) -> np.ndarray:
        found = [np.zeros(0)]
        for is_near in (True, False):
            for k, u in enumerate(layers.uniform):
                origin = (frozenset({k}) if is_near else own - {k}) if rules.near else NOWHERE
                begin = ((NEAR, ~k) if is_near else HELD, BEFORE), NOWHERE
                around = _around(rules, origin, wholly=is_near)
                found.append(sums.to_loss([(u.hidden.old, begin)], around))
        return np.concatenate(found)

    found = {own: signal(own) for own in {*regions.values()}}
    return {r: found[own] for r, own in regions.items()}


#: A path that has met no lower state yet, or one, or passes an origin that this one drives.
BEFORE, PAST, PASSING = "before", "past", "passing"


def _around(rules: Lasting, origin: Inside, wholly: bool) -> Any:
    """The rule of :meth:`Lasting.outside` for paths that pass no new value of some states.

    Unless ``wholly``: what comes from below an origin passes it by its region, to what is above.
    """
    layers = rules.layers
    stops = set().union(*({layers.uniform[k].hidden.new, *layers.mates[k]} for k in origin))
    lower = {} if wholly else layers.below
    passed = {layers.uniform[j].hidden.new for k in origin for j in lower.get(k, ())}

    def rule(edge: Edge, mode: Mode) -> Mode | None:
        (base, seen), inside = mode
        after = rules.outside(edge, (base, inside))
        if seen == PASSING and not any(edge in u.edges for u in layers.uniform):
            return None
        if edge.target in stops:
            seen = PASSING if seen == PAST else None
        elif edge.target in passed or (seen == PASSING and edge.target in layers.number_of):
            seen = PAST
        return None if after is None or seen is None else ((after[0], seen), after[1])

    return rule


#: The place of what has none among the positions of a home.
ANYWHERE = -1


def places_of(layers: Layers, home: Home) -> np.ndarray:
    """The positions of the members of a home, then of uniform states of its shape, twice."""
    near = _places_of_uniform(layers, home.members[0].varshape if home.members else None)
    far = np.full(near.size, ANYWHERE)
    return np.concatenate([*(h.positions for h in home.members), near, far])


def _places_above(layers: Layers, home: Home) -> np.ndarray:
    """The positions of uniform states of the shape of a home or of what drives it."""
    ends = [layers.graph.program.avals[z].shape for _, z in sorted(home.filters)]
    shapes = [*(h.varshape for h in home.members), *map(tuple, ends)]
    return _places_of_uniform(layers, shapes[0])


def _places_of_uniform(layers: Layers, shape: Any) -> np.ndarray:
    near = [
        u.hidden.positions
        if u.hidden.varshape == shape
        else np.full(u.hidden.positions.size, ANYWHERE)
        for u in layers.uniform
    ]
    return np.concatenate([np.zeros(0, int), *near])


def _equal(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return (columns == ANYWHERE) | (rows[:, None] == columns)


class FeedbackError(ValueError):
    """Uniform states lead to what drives them, and recurrent input is kept."""


# --- a sequence ------------------------------------------------------------------------------


def learn_downstream(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    *,
    uniform: Iterable[Path],
    groups: Sequence[Sequence[Path]] | None,
    scope: Scope,
    kappa: float | None = None,
    decays: tuple[float, float] | None = None,
) -> OracleResult:
    """The gradient, with credit that passes uniform states.

    ``kappa``: in place of their leaks. ``decays``: those of pp_prop, which has influences of near
    operations alone, and none of other parameters.
    """
    step = trace_step(model, sequences, loss_fn)
    graph = build_graph(step, groups)
    runs = list(run_steps(step, graph, sequences))
    uniform = tuple(uniform)
    if groups is None:
        graph = across_layers(graph, [now.jacobians for now in runs], {*map(tuple, uniform)})
    near = decays is not None
    layers = find_layers(graph, uniform, runs, near)
    if scope == "coupled" and layers.feeds_back:
        raise FeedbackError
    steps = [record_layers(layers, now, scope, near) for now in runs]
    influences = influences_of(layers, steps, kappa)
    if decays is not None:
        influences = _of_products(layers, steps, *decays)
    grad = np.sum([now.direct for now in steps], axis=0)
    if decays is not None:
        grad = grad + sum(product(now.l_u, now.plain) for now in steps)
    every: list[dict[tuple[int, int], np.ndarray]] = []
    for now, (U, M), (U_old, M_old) in influences:
        for r in U:
            grad = grad + product(now.l_u, U[r])
        for r in U_old:
            grad = grad + product(now.e_u[r], U_old[r])
        for r, a in M:
            grad = grad + product(now.l[a], M[r, a])
        for r, a in M_old:
            grad = grad + product(now.e[a], M_old[r, a])
        every.append(_by_group(layers, U, M))
    names = {r: graph.program.equations[r].primitive.name for r in layers.operations}
    return OracleResult(
        loss=np.stack([now.loss for now in runs]),
        outputs=jax.tree.map(lambda *leaves: np.stack(leaves), *(now.out for now in runs)),
        grads=by_path(step, graph, grad),
        influences={
            key: by_path(step, graph, np.stack([now[key] for now in every])) for key in every[0]
        },
        groups=tuple(tuple(h.path for h in members) for members in graph.groups),
        relations=tuple(every[0]),
        names={**names, PLAIN_USE: ""},
        steps=(),
    )


Influences = tuple[dict[int, np.ndarray], dict[tuple[int, int], np.ndarray]]
"""``U`` by operation, and ``M`` by operation and home."""


def influences_of(
    layers: Layers, steps: Sequence[LayersRecord], kappa: float | None = None
) -> Iterator[tuple[LayersRecord, Influences, Influences]]:
    """Each step with the influences after and before it."""
    first, n = steps[0], steps[0].direct.size
    rows = len(first.K_u)
    U = {r: np.zeros((rows, n)) for r in (*layers.operations, PLAIN_USE)}
    M = {(r, a): np.zeros((len(first.K[a]), n)) for r, a in first.F}
    for now in steps:
        U_old, M_old = U, M
        U = {r: product(now.K_u, before) for r, before in U_old.items()}
        U[PLAIN_USE] = U[PLAIN_USE] + now.plain
        K = [_with_leaks(layers, matrix, kappa) for matrix in now.K]
        M = {}
        for r, dY in now.dY.items():
            U[r] = U[r] + product(now.F_u[r], dY)
            near, near_old = U[r][: rows // 2], U_old[r][: rows // 2]
            for a in range(len(layers.homes)):
                M[r, a] = product(K[a], M_old[r, a]) + product(now.F[r, a], dY)
                M[r, a] += product(now.G[a], near) + product(now.G_old[a], near_old)
        yield now, (U, M), (U_old, M_old)


def _of_products(
    layers: Layers, steps: Sequence[LayersRecord], decay_x: float, decay_f: float
) -> Iterator[tuple[LayersRecord, Influences, Influences]]:
    """pp_prop: the input, and what leads to states, filtered apart."""
    first, homes = steps[0], range(len(layers.homes))
    x: dict[int, Any] = dict.fromkeys(first.dY, 0.0)
    U: dict[int, Any] = {r: np.zeros_like(F) for r, F in first.F_u.items()}
    M: dict[Any, Any] = {key: np.zeros_like(F) for key, F in first.F.items()}
    before: Influences = {}, {}
    for t, now in enumerate(steps):
        U_old, M_old, fresh = U, M, 1 - decay_f
        U = {r: decay_f * product(now.K_u, U_old[r]) + fresh * now.F_u[r] for r in U_old}
        M = {}
        for r, a in ((r, a) for r in U for a in homes):
            past = product(now.K[a], M_old[r, a]) + product(now.G_old[a], near_rows(U_old[r]))
            past = past + product(now.G_at[a], near_rows(product(now.K_u, U_old[r])))
            new = now.F[r, a] + product(now.G[a], near_rows(now.F_u[r]))
            M[r, a] = decay_f * past + fresh * new
        dY = {}
        for r in U:
            x[r] = None if now.x[r] is None else decay_x * x[r] + now.x[r]
            dY[r] = now.dY_at[r](x[r]) / (1 - decay_f ** (t + 1))
        of_U = {r: product(matrix, dY[r]) for r, matrix in U.items()}
        of_M = {key: product(matrix, dY[key[0]]) for key, matrix in M.items()}
        yield now, (of_U, of_M), before
        before = of_U, of_M


def near_rows(rows: np.ndarray) -> np.ndarray:
    """The first half of the rows of uniform states."""
    return rows[: len(rows) // 2]


def _with_leaks(layers: Layers, matrix: np.ndarray, kappa: float | None) -> np.ndarray:
    """``K`` with another leak of the uniform states, which are its last rows, twice."""
    if kappa is None:
        return matrix
    sizes = [u.hidden.positions.size for u in layers.uniform] * 2
    start, matrix = len(matrix) - sum(sizes), matrix.copy()
    for size in sizes:
        own = slice(start, start + size)
        matrix[own, own] = kappa * np.eye(size)
        start += size
    return matrix


def _by_group(
    layers: Layers, U: dict[int, np.ndarray], M: dict[tuple[int, int], np.ndarray]
) -> dict[tuple[int, int], np.ndarray]:
    """The whole influence of each operation on each group."""
    found = {}
    for r, region in U.items():
        total: dict[Path, Any] = {}

        def book(members: Iterable[Hidden], rows: np.ndarray, total: Any = total) -> None:
            for h in members:
                own, rows = np.split(rows, [h.positions.size])
                total[h.path] = total.get(h.path, 0.0) + own

        twice = [u.hidden for u in layers.uniform] * 2
        book(twice, region)
        for a, home in enumerate(layers.homes):
            if (r, a) in M:
                book([*home.members, *twice], M[r, a])
        for g, members in enumerate(layers.graph.groups):
            rest = [
                total.get(h.path, np.zeros((h.positions.size, region.shape[1]))) for h in members
            ]
            found[r, g] = np.concatenate(rest)
    return found
