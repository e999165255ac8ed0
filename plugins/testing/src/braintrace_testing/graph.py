# SPDX-License-Identifier: Apache-2.0
"""Hidden groups and relations of a step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import brainstate
import jax
import numpy as np

from .paths import (
    NEAR,
    Rule,
    arriving_at,
    connected,
    everywhere,
    path_sums,
    starting_at,
    uncrossed,
    within,
)
from .program import Edge, Program, flatten, is_float, parts_of
from .step import Path, Step


@dataclass(frozen=True)
class Hidden:
    """A hidden state: the variables of its old and new value, and the shape of its positions.

    ``parts``: 2 for complex numbers, whose real parts come before all imaginary parts.
    """

    path: Path
    old: int
    new: int
    varshape: tuple[int, ...]
    num_state: int
    parts: int

    @property
    def positions(self) -> np.ndarray:
        """The position of each entry; a state that holds several has them on its last axis."""
        places = np.repeat(np.arange(math.prod(self.varshape)), self.num_state)
        return np.tile(places, self.parts)


@dataclass(frozen=True)
class Graph:
    """What the oracle finds in a step; groups and equations are numbers, as in ``relations``.

    ``parameters`` are the variables of the parameter leaves, by path; the columns of every
    parameter Jacobian are their entries, in order.
    """

    program: Program
    parameters: dict[Path, tuple[int, ...]]
    loss: int
    groups: tuple[tuple[Hidden, ...], ...]
    relations: tuple[tuple[int, int], ...]

    @property
    def leaves(self) -> list[int]:
        """The variables of all parameter leaves."""
        return [v for variables in self.parameters.values() for v in variables]

    @property
    def group_of(self) -> dict[int, int]:
        """Group of each variable that is the new value of a hidden state."""
        return _group_of(self.groups)

    @property
    def related(self) -> tuple[int, ...]:
        """Equations with at least one relation."""
        return tuple(dict.fromkeys(k for k, _ in self.relations))

    def y(self, equation: int) -> int:
        """The output of an ETP equation."""
        return self.program.equations[equation].results[0]


def build_graph(step: Step, groups: Sequence[Sequence[Path]] | None = None) -> Graph:
    """The graph of a step; ``groups``, by path, replaces the search for hidden groups.

    Raises
    ------
    ValueError
        When ``groups`` names a state twice, or one that is no hidden state of the step.
    """
    first_input, first_output = len(jax.tree.leaves(step.example)), step.out_tree.num_leaves
    places, hidden_places, start = {}, {}, 0
    for path, state, value in zip(step.paths, step.states, step.values, strict=True):
        leaves = jax.tree.leaves(value)
        if path is not None and isinstance(state, brainstate.ParamState):
            places[path] = range(start, start + len(leaves))
        elif path is not None and isinstance(state, brainstate.HiddenState) and is_float(leaves[0]):
            hidden_places[path] = start, state
        start += len(leaves)
    hidden_places = {path: hidden_places[path] for path in step.order if path in hidden_places}
    program = flatten(
        step.jaxpr,
        parameters={first_input + k for of_path in places.values() for k in of_path},
        olds=[first_input + k for k, _ in hidden_places.values()],
        hidden=[first_output + k for k, _ in hidden_places.values()],
    )
    hidden = [
        Hidden(
            path=path,
            old=program.inputs[first_input + k],
            new=program.outputs[first_output + k],
            varshape=tuple(state.varshape),
            num_state=state.num_state,
            parts=parts_of(jax.tree.leaves(state.value)[0]),
        )
        for path, (k, state) in hidden_places.items()
    ]
    parameters = {
        path: tuple(program.inputs[first_input + k] for k in of_path)
        for path, of_path in places.items()
    }
    found = _find_groups(program, hidden) if groups is None else _named_groups(hidden, groups)
    return Graph(
        program=program,
        parameters=parameters,
        loss=program.outputs[first_output - 1],
        groups=found,
        relations=tuple(_find_relations(program, parameters, found)),
    )


def _find_groups(program: Program, hidden: list[Hidden]) -> tuple[tuple[Hidden, ...], ...]:
    """Connected components of: old ``i`` reaches new ``j`` uncrossed, in one layer and shape."""
    label = {h.path: k for k, h in enumerate(hidden)}
    for i in hidden:
        reached = connected(program, i.old, uncrossed)
        for j in hidden:
            if j.new in reached and i.varshape == j.varshape and same_layer(i.path, j.path):
                merged = {label[i.path], label[j.path]}
                label = {p: min(merged) if k in merged else k for p, k in label.items()}
    return tuple(
        tuple(h for h in hidden if label[h.path] == k) for k in sorted(set(label.values()))
    )


def across_layers(
    graph: Graph, jacobians: Sequence[Sequence[np.ndarray]], apart: Collection[Path]
) -> Graph:
    """The graph with groups joined where a state leads to another position by position.

    That is in the local ``jacobians`` of all steps, without crossing an ETP equation or passing a
    further state; states that are ``apart``, or several at a position, are left as they are.
    States of one layer that lead to one another past those alone are groups of their own.
    """
    program, label = graph.program, _labels(graph, apart)
    hidden = [
        h for members in graph.groups for h in members if h.path not in apart and h.num_state == 1
    ]
    news = {h.new for members in graph.groups for h in members}
    for i in hidden:
        shaped = [j for j in hidden if j.varshape == i.varshape and label[i.path] != label[j.path]]
        for j, source in ((j, v) for j in shaped for v in (i.old, i.new)):

            def rule(edge: Edge, mode: Any, source: int = source) -> Any:
                return None if edge.crosses or edge.source in news - {source} else mode

            if follows(program, jacobians, {source: i.positions}, j, rule):
                label = {p: label[i.path] if k == label[j.path] else k for p, k in label.items()}
    every = [h for members in graph.groups for h in members]
    groups = tuple(
        tuple(h for h in every if label[h.path] == k) for k in dict.fromkeys(label.values())
    )
    relations = _find_relations(program, graph.parameters, groups)
    return replace(graph, groups=groups, relations=tuple(relations))


def _labels(graph: Graph, apart: Collection[Path]) -> dict[Path, tuple[int, int]]:
    """A label for each group, in which no state leads to another by one that is ``apart``."""
    hidden = [(g, h) for g, members in enumerate(graph.groups) for h in members]
    news = {h.new for _, h in hidden if h.path in apart}
    label = {h.path: (g, k) for k, (g, h) in enumerate(hidden)}

    def rule(edge: Edge, mode: Any) -> Any:
        return None if edge.crosses or edge.source in news else mode

    rest = [(g, h) for g, h in hidden if h.path not in apart]
    for g, i in rest:
        reached = connected(graph.program, i.old, rule) | connected(graph.program, i.new, rule)
        near = {label[j.path] for k, j in rest if k == g and j.new in reached} | {label[i.path]}
        label = {p: min(near) if k in near else k for p, k in label.items()}
    return label


def follows(
    program: Program,
    jacobians: Sequence[Sequence[np.ndarray]],
    starts: Mapping[int, np.ndarray],
    hidden: Hidden,
    rule: Rule,
) -> bool:
    """Whether a new value depends on variables, given with their positions, by these alone."""
    positions, found = np.concatenate([*starts.values()]), np.zeros((), bool)
    for local in jacobians:
        start = starting_at(program, [*starts], NEAR)
        reached = path_sums(program.edges, local, start, rule)
        found = found | (arriving_at(program, reached, [hidden.new], positions.size) != 0)
    return bool(found.any() and not (found & (hidden.positions[:, None] != positions)).any())


def same_layer(a: Path, b: Path) -> bool:
    """Whether two state paths do not first differ at an integer index."""
    for p, q in zip(a, b, strict=False):
        if p != q:
            return not (isinstance(p, int) and isinstance(q, int))
    return True


def _named_groups(
    hidden: list[Hidden], groups: Sequence[Sequence[Path]]
) -> tuple[tuple[Hidden, ...], ...]:
    """The groups given by path, then each other hidden state on its own."""
    by_path = {h.path: h for h in hidden}
    named = [tuple(path) for group in groups for path in group]
    if len(set(named)) != len(named) or not set(named) <= by_path.keys():
        raise ValueError(
            f"groups must name each state at most once, out of {list(by_path)}; got {groups}"
        )
    rest = [(path,) for path in by_path if path not in named]
    return tuple(tuple(by_path[tuple(p)] for p in group) for group in [*groups, *rest])


def _find_relations(
    program: Program, parameters: dict[Path, tuple[int, ...]], groups: Sequence[Sequence[Hidden]]
) -> list[tuple[int, int]]:
    """Pairs of an ETP equation with a parameter and a group that its output reaches."""
    group_of = _group_of(groups)
    from_parameters: set[int] = set()
    for variables in parameters.values():
        for v in variables:
            from_parameters |= connected(program, v, everywhere)
    with_parameter = dict.fromkeys(
        e.equation for e in program.edges if e.trainable and e.source in from_parameters
    )
    relations = []
    for k in with_parameter:
        y = program.equations[k].results[0]
        for g, members in enumerate(groups):
            reached = connected(program, y, within(group_of, g))
            if any(h.new in reached for h in members):
                relations.append((k, g))
    return relations


def _group_of(groups: Sequence[Sequence[Hidden]]) -> dict[int, int]:
    return {h.new: g for g, members in enumerate(groups) for h in members}
