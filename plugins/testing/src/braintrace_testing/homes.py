# SPDX-License-Identifier: Apache-2.0
"""What recurs together in a step with uniform states: states, and filters of what drives these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .graph import Graph, Hidden, follows, same_layer
from .paths import NEAR, Rule, arriving_at, connected, path_sums, uncrossed
from .program import Edge
from .records import Run
from .regions import Affine, Filter, Home, Layers, elsewhere, region_of, varying_of
from .step import Path


def find_layers(
    graph: Graph, uniform: Iterable[Path], recorded: Sequence[Run], near: bool = False
) -> Layers:
    """The layers of a step, of which some states are known to be uniform, from a run of it.

    ``near``: as in :class:`Lasting <braintrace_testing.lasting.Lasting>`.

    Raises
    ------
    ValueError
        When a path is not that of a hidden state, or its state is not uniform in these runs.
    """
    program = graph.program
    named = {tuple(path) for path in uniform}
    hidden = {h.path: h for members in graph.groups for h in members}
    if not named <= hidden.keys():
        raise ValueError(f"uniform must name hidden states out of {list(hidden)}; got {named}")
    varying, runs = varying_of(graph), [now.values for now in recorded]
    steps = [now.jacobians for now in recorded]
    affine = Affine(program, varying, [*runs, *elsewhere(graph, varying, runs)])
    states = {v for h in hidden.values() for v in (h.old, h.new)}
    found = tuple(region_of(program, h, states, affine) for p, h in hidden.items() if p in named)
    links = _Near(graph)
    held = frozenset(
        (k, z) for k, u in enumerate(found) for z in u.ends if links.recurs(u.hidden, z)
    )
    rest = [tuple(h for h in members if h.path not in named) for members in graph.groups]
    layers = Layers(graph, found, (), held, varying)
    homes = _homes(links, [members for members in rest if members], layers, [] if near else steps)
    layers = replace(layers, homes=homes)
    return replace(layers, mates=_mates(links, layers, steps)) if near else layers


@dataclass(frozen=True)
class _Near:
    """What leads where without crossing an ETP equation."""

    graph: Graph

    @cached_property
    def hidden(self) -> list[Hidden]:
        return [h for members in self.graph.groups for h in members]

    @cached_property
    def reached(self) -> dict[int, set[int]]:
        """From the old and the new value of each state, the variables; passing others' values."""
        values = [v for h in self.hidden for v in (h.old, h.new)]
        return {v: connected(self.graph.program, v, uncrossed) for v in values}

    def leads(self, hidden: Hidden, variable: int) -> bool:
        return any(variable in self.reached[v] for v in (hidden.old, hidden.new))

    @cached_property
    def ever(self) -> dict[Path, set[Path]]:
        """The states that each leads to, over any number of steps."""
        found = {h.path: {j.path for j in self.hidden if self.leads(h, j.new)} for h in self.hidden}
        while True:
            wider = {p: to.union({p}, *(found[q] for q in to)) for p, to in found.items()}
            if wider == found:
                return found
            found = wider

    def recurs(self, hidden: Hidden, end: int) -> bool:
        """Whether a state leads to what drives it, over any number of steps."""
        if end == hidden.old:
            return False
        return any(self.leads(h, end) for h in self.hidden if h.path in self.ever[hidden.path])

    def directly(self, hidden: Hidden, stops: frozenset[int]) -> set[int]:
        """The variables that a state leads to past no value of some others."""
        values = hidden.old, hidden.new
        rule = _past(stops.difference(values))
        return set().union(*(connected(self.graph.program, v, rule) for v in values))


def _past(stops: frozenset[int]) -> Rule:
    """Paths that cross no ETP equation, from none of some variables."""
    return lambda edge, mode: None if edge.crosses or edge.source in stops else mode


@dataclass(frozen=True)
class _Followers:
    """What follows filters position by position, by the local Jacobians of some steps.

    A uniform state is its filters behind the map of its region, in the step and in the next one.
    What drives another one gives this one filters behind the same map.
    """

    layers: Layers
    stops: frozenset[int]
    steps: Sequence[Sequence[np.ndarray]]

    def of(self, one: Filter) -> set[int]:
        """The variables, past no new value of other states."""
        if not self.steps:
            return set()
        k, end = one
        start = np.eye(self.layers.graph.program.size(end))
        found: set[int] = set()
        todo = [(k, [self.passed(k, end, start, local) for local in self.steps])]
        while todo:
            i, maps = todo.pop()
            own = {self.layers.uniform[i].hidden.old, self.layers.uniform[i].hidden.new}
            found |= self.followed(own, maps, self.places(end))
            for j, u in enumerate(self.layers.uniform):
                for v in own & u.ends if i != j else ():
                    if (j, v) not in self.layers.held | self.layers.loops:
                        pairs = zip(maps, self.steps, strict=True)
                        todo.append((j, [self.passed(j, v, m, local) for m, local in pairs]))
        return found

    def passed(
        self, k: int, end: int, matrix: np.ndarray, local: Sequence[np.ndarray]
    ) -> np.ndarray:
        """What a region makes of an end, crossing no ETP equation."""
        u, program = self.layers.uniform[k], self.layers.graph.program

        def rule(edge: Edge, mode: Any) -> Any:
            return None if edge.crosses or edge not in u.edges else mode

        reached = path_sums(program.edges, local, {end: {NEAR: matrix}}, rule)
        return arriving_at(program, reached, [u.hidden.new], matrix.shape[1])

    def followed(
        self, values: set[int], maps: Sequence[np.ndarray], places: np.ndarray
    ) -> set[int]:
        """What reads values, each of which is a map of the filter, at its own positions."""
        edges, at = self.layers.graph.program.edges, dict[int, Any]()
        for v in values:
            for matrix, local in zip(maps, self.steps, strict=True):
                reached = path_sums(edges, local, {v: {NEAR: matrix}}, _past(self.stops - {v}))
                for to, modes in reached.items():
                    at[to] = at.get(to, False) | (modes[NEAR] != 0)
        mixed = {v for v, on in at.items() if (on & (self.places(v)[:, None] != places)).any()}
        return {v for v, on in at.items() if on.any()} - mixed

    def places(self, variable: int) -> np.ndarray:
        """The position of each entry: parts of complex numbers come one after the other."""
        program = self.layers.graph.program
        count = math.prod(program.avals[variable].shape)
        return np.resize(np.arange(count), program.size(variable))


def _homes(
    near: _Near,
    groups: Sequence[tuple[Hidden, ...]],
    layers: Layers,
    steps: Sequence[Sequence[np.ndarray]],
) -> tuple[Home, ...]:
    """Groups, joined with the filters of what is of their shape and lies near them.

    What is above a filter, or another filter there, lies near where it follows it position by
    position. ``steps``: local Jacobians, of which that depends.
    """
    news = frozenset(h.new for members in groups for h in members)
    stops, uniform = news | layers.number_of.keys(), enumerate(layers.uniform)
    filters = [(k, z) for k, u in uniform for z in sorted(u.ends - layers.number_of.keys())]
    filters = [one for one in filters if one not in layers.held]
    parts: list[set[Any]] = [{k} for k in range(len(groups))] + [{one} for one in filters]

    def join(a: Any, b: Any) -> None:
        first, second = (next(part for part in parts if x in part) for x in (a, b))
        if first is not second:
            parts.remove(second)
            first |= second

    def shape(z: int) -> tuple[int, ...]:
        return tuple(near.graph.program.avals[z].shape)

    for k, members in enumerate(groups):
        for h in members:
            reached = near.directly(h, stops) - stops | {h.old, h.new}
            for one in filters:
                if one[1] in reached and shape(one[1]) == h.varshape:
                    join(k, one)
    followers = _Followers(layers, stops, steps)
    for one in filters:
        reached, n = followers.of(one), shape(one[1])
        for k, members in enumerate(groups):
            if any(h.new in reached and h.varshape == n and h.num_state == 1 for h in members):
                join(k, one)
        for other in filters:
            if other[1] in reached - news and shape(other[1]) == n:
                join(one, other)
    return tuple(
        Home(
            tuple(h for k in sorted(x for x in part if isinstance(x, int)) for h in groups[k]),
            frozenset(x for x in part if not isinstance(x, int)),
        )
        for part in parts
    )


def _mates(
    near: _Near, layers: Layers, steps: Sequence[Sequence[np.ndarray]]
) -> tuple[frozenset[int], ...]:
    """For each uniform state, the new values of the states that are of its group.

    These follow it, or one of them, past no further state, in one layer or position by position.
    """
    program, groups = near.graph.program, [{*members} for members in near.graph.groups]
    stops = layers.others | layers.number_of.keys()

    def leads(u: Hidden, h: Hidden) -> bool:
        if h.new not in near.directly(u, stops) or h.varshape != u.varshape:
            return False
        if same_layer(u.path, h.path) or any({u, h} <= members for members in groups):
            return True
        rule, place = _past(stops.difference((u.old, u.new))), u.positions
        both = {u.old: place, u.new: place}
        return h.num_state == 1 and follows(program, steps, both, h, rule)

    return tuple(
        frozenset().union(
            *(home.news for home in layers.homes if any(leads(u.hidden, h) for h in home.members))
        )
        for u in layers.uniform
    )
