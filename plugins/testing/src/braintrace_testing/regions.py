# SPDX-License-Identifier: Apache-2.0
"""What drives a uniform state, found from the numbers of a run.

Behind the new value of a uniform state lie equations that are affine in what varies, the same at
all steps but for factors that are the same everywhere: its *region*. It ends at the values that
drive the state, its *ends*: hidden values, and results of any other equation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .graph import Graph, Hidden
from .paths import connected, everywhere
from .program import Edge, Equation, Program, evaluate, is_float, matrix_of

Filter = tuple[int, int]
"""A number of a uniform state, and one of its ends."""


@dataclass(frozen=True)
class Uniform:
    """A uniform state: the edges and variables of its region, and where this ends."""

    hidden: Hidden
    edges: frozenset[Edge]
    inside: frozenset[int]
    ends: frozenset[int]


@dataclass(frozen=True)
class Home:
    """States that recur together: hidden ones of no uniform dynamics, and filters."""

    members: tuple[Hidden, ...]
    filters: frozenset[Filter]

    @cached_property
    def news(self) -> frozenset[int]:
        """The variables of the new values of the members."""
        return frozenset(h.new for h in self.members)


@dataclass(frozen=True)
class Layers:
    """The step with its uniform states, by number, and everything else that recurs.

    ``held``: filters whose end is the recurrent input of the state itself. ``mates``: for each
    uniform state that has traces of its own, the new values of the other states of its group.
    """

    graph: Graph
    uniform: tuple[Uniform, ...]
    homes: tuple[Home, ...]
    held: frozenset[Filter]
    varying: frozenset[int]
    mates: tuple[frozenset[int], ...] = ()

    @cached_property
    def loops(self) -> frozenset[Filter]:
        """What closes loops of uniform states: filters whose end is the value of another one.

        That leads to it in turn, and lies no nearer to what drives these states from elsewhere.
        Such a path counts in the step in which it is.
        """
        count = range(len(self.uniform))
        between = {
            (k, z): self.number_of[z]
            for k, u in enumerate(self.uniform)
            for z in u.ends & self.number_of.keys()
            if (k, z) not in self.held and self.number_of[z] != k
        }
        below = {k: {j for (own, _), j in between.items() if own == k} for k in count}
        for _ in count:
            below = {k: own.union(*(below[j] for j in own)) for k, own in below.items()}
        looped = {one: j for one, j in between.items() if one[0] in below[j]}
        depth = [0 if self.is_driven(k, {*looped}) else len(count) for k in count]
        for _ in count:
            for (k, _z), j in looped.items():
                depth[k] = min(depth[k], depth[j] + 1)
        return frozenset(one for one, j in looped.items() if depth[j] >= depth[one[0]])

    @cached_property
    def below(self) -> dict[int, set[int]]:
        """The uniform states that drive each, by others of them, where no loop is closed."""
        found: dict[int, set[int]] = {k: set() for k in range(len(self.uniform))}
        for _ in found:
            for k, u in enumerate(self.uniform):
                for z in u.ends & self.number_of.keys():
                    j = self.number_of[z]
                    if j != k and (k, z) not in self.held | self.loops:
                        found[k] |= {j, *found[j]}
        return found

    @cached_property
    def feeds_back(self) -> bool:
        """Whether uniform states lead to what drives them, in whatever way."""
        program = self.graph.program
        for home in self.homes:
            above = {k for k, _ in home.filters}
            above |= {k for k, lower in self.below.items() if lower & above}
            to = {*home.news, *(z for _, z in home.filters)}
            hidden = (self.uniform[k].hidden for k in above)
            if any(to & connected(program, v, everywhere) for h in hidden for v in (h.old, h.new)):
                return True
        return False

    def is_driven(self, k: int, looped: set[Filter]) -> bool:
        """Whether something beside loops drives a uniform state, or parameters and inputs do."""
        u, made = self.uniform[k], {edge.target for edge in self.uniform[k].edges}
        ends = {(k, z) for z in u.ends - {u.hidden.old}} - self.held - looped
        return bool(ends or u.inside - made)

    @cached_property
    def number_of(self) -> dict[int, int]:
        """Of the old and new values of uniform states, which these are."""
        pairs = [(u.hidden, k) for k, u in enumerate(self.uniform)]
        return {v: k for h, k in pairs for v in (h.old, h.new)}

    @cached_property
    def operations(self) -> tuple[int, ...]:
        """The ETP equations with a parameter."""
        program = self.graph.program
        behind = set().union(*(connected(program, v, everywhere) for v in self.graph.leaves))
        found = (e.equation for e in program.edges if e.trainable and e.source in behind)
        return tuple(dict.fromkeys(found))

    def regions_of(self, variable: int) -> frozenset[int]:
        """The uniform states in whose region a variable is."""
        return frozenset(k for k, u in enumerate(self.uniform) if variable in u.inside)

    @cached_property
    def others(self) -> frozenset[int]:
        """The new values of all other states."""
        return frozenset().union(*(home.news for home in self.homes))


def varying_of(graph: Graph) -> frozenset[int]:
    """The variables that depend on more than parameters."""
    program = graph.program
    found = {*program.inputs} - {*graph.leaves}
    for equation in program.equations:
        if found.intersection(equation.operands):
            found.update(equation.results)
    return frozenset(found)


def elsewhere(
    graph: Graph, varying: frozenset[int], runs: Sequence[list[Any]]
) -> Iterator[list[Any]]:
    """The values of two steps at other inputs and states: what is the same there, too, is so."""
    program, random = graph.program, np.random.default_rng(1)
    for run in (runs[0], runs[-1]):
        values = [run[v] for v in program.inputs]
        yield program.linearise(
            [
                x + _random(random, x) if v in varying and is_float(program.avals[v]) else x
                for v, x in zip(program.inputs, values, strict=True)
            ]
        )[0]


# --- affine equations ------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """Which equations are affine in what varies, in the same way at all steps."""

    program: Program
    varying: frozenset[int]
    runs: Sequence[list[Any]]

    @cached_property
    def into(self) -> dict[int, list[Edge]]:
        """The edges to each variable."""
        found: dict[int, list[Edge]] = {}
        for edge in self.program.edges:
            found.setdefault(edge.target, []).append(edge)
        return found

    def edges(self, target: int) -> list[Edge] | None:
        """The edges from what varies to a variable, if it is made by such an equation.

        There are none where parameters meet inputs alone.
        """
        if target not in self.into:
            return None
        edges = [edge for edge in self.into[target] if edge.source in self.varying]
        equation = self.program.equations[self.into[target][0].equation]
        result = equation.results.index(target)
        operands = [edge.operand for edge in edges] or [
            i
            for i, v in enumerate(equation.operands)
            if v in self.varying and is_float(self.program.avals[v])
        ]
        steady = all(self.is_steady(target, matrices) for matrices in self.jacobians(edges))
        affine = all(self.is_affine(equation, result, operands, run) for run in self.runs)
        return edges if operands and steady and affine else None

    def jacobians(self, edges: list[Edge]) -> list[list[np.ndarray]]:
        """Of each edge to a variable, at all steps."""
        if not edges:
            return []
        equation = self.program.equations[edges[0].equation]
        pairs = tuple((edge.operand, edge.result) for edge in edges)
        runs = ([run[v] for v in equation.operands] for run in self.runs)
        found = (evaluate(equation.run, pairs, operands)[1] for operands in runs)
        return [list(map(matrix_of, rows)) for rows in zip(*found, strict=True)]

    def is_affine(
        self, equation: Equation, result: int, operands: Sequence[int], run: list[Any]
    ) -> bool:
        """Whether large steps of some operands, one and two of them, go on as they begin."""
        random = np.random.default_rng(0)
        for _ in range(3):
            values = [run[v] for v in equation.operands]
            steps = {i: _random(random, values[i]) for i in operands}
            points = (
                [v + n * steps[i] if i in steps else v for i, v in enumerate(values)]
                for n in range(3)
            )
            at = [np.asarray(evaluate(equation.run, (), point)[0][result]) for point in points]
            if not np.allclose(at[2] - at[1], at[1] - at[0], rtol=1e-4, atol=1e-4):
                return False
        return True

    def is_steady(self, target: int, matrices: list[np.ndarray]) -> bool:
        """Whether a Jacobian is the same at all steps, but for a factor (of each example)."""
        if all(np.array_equal(matrix, matrices[0]) for matrix in matrices):
            return True
        shape = self.program.avals[target].shape
        examples = shape[0] if len(shape) > 1 else 1
        pattern = np.any([matrix != 0 for matrix in matrices], axis=0)
        rows = [np.array_split(part, examples) for part in (pattern, *matrices)]
        return all(
            np.ptp(part[of]) == 0
            for own in rows[1:]
            for of, part in zip(rows[0], own, strict=True)
            if of.any()
        )


def _random(random: np.random.Generator, like: Any) -> np.ndarray:
    """A large step of a value."""
    real, imaginary = 10 * random.standard_normal((2, *np.shape(like)))
    complex_ = np.iscomplexobj(like)
    return np.asarray(real + 1j * imaginary if complex_ else real).astype(np.asarray(like).dtype)


def region_of(program: Program, hidden: Hidden, states: set[int], affine: Affine) -> Uniform:
    """A uniform state with its region, found from its new value downwards."""
    edges: set[Edge] = set()
    inside: set[int] = set()
    ends: set[int] = set()
    todo = [hidden.new]
    while todo:
        variable = todo.pop()
        if variable in inside or variable in ends:
            continue
        is_end = variable in states and variable != hidden.new
        found = None if is_end else affine.edges(variable)
        if found is None:
            ends.add(variable)
            continue
        inside.add(variable)
        edges.update(found)
        todo += [edge.source for edge in found]
    if hidden.new in ends or hidden.old not in ends:
        raise ValueError(
            f"{hidden.path} is not uniform: it does not depend on its old value, or "
            "in a way that changes with what carries a derivative"
        )
    return Uniform(hidden, frozenset(edges), frozenset(inside), frozenset(ends))
