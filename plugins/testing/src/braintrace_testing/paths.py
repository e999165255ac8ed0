# SPDX-License-Identifier: Apache-2.0
"""Path sums over one step, and the rules that say which paths count for what.

The Jacobian of one variable in another is the sum over all paths between them of the product of
the local Jacobians. A learning rule keeps some of these paths and drops others. Which ones is
decided edge by edge by a *rule*: a path carries a mode, and ``rule(edge, mode)`` is its mode
behind the edge, or ``None`` when the path is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from .program import Edge, Program

Mode = Any
NEAR, FAR = "near", "far"
Rule = Callable[[Edge, Mode], Mode | None]
Change = Callable[[Edge, Mode, Mode, np.ndarray], np.ndarray]
Reached = dict[int, dict[Mode, np.ndarray]]


def path_sums(
    edges: Sequence[Edge],
    jacobians: Sequence[np.ndarray],
    sources: Reached,
    rule: Rule,
    change: Change | None = None,
) -> Reached:
    """For every variable and mode, the sum over the paths that arrive there in that mode.

    ``sources`` maps the variables where paths start to ``{mode: matrix}``, usually a block of rows
    of the identity: the columns of all matrices are the entries of the sources. ``change``, of an
    edge, the modes before and behind it, and the matrix in front of it, is what goes on from there.
    """
    reached = {variable: dict(modes) for variable, modes in sources.items()}
    for edge, jacobian in zip(edges, jacobians, strict=True):
        for mode, matrix in list(reached.get(edge.source, {}).items()):
            after = rule(edge, mode)
            if after is not None:
                there = reached.setdefault(edge.target, {})
                with np.errstate(invalid="ignore"):  # infinities that cancel
                    given = matrix if change is None else change(edge, mode, after, matrix)
                    there[after] = there.get(after, 0.0) + product(jacobian, given)
    return reached


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b``, where zero times infinity is zero: what depends on nothing passes nothing on."""
    with np.errstate(invalid="ignore"):
        found = a @ b
        if np.isfinite(found).all():
            return np.asarray(found)
        terms = a[..., None] * b
    return np.asarray(np.where((a[..., None] == 0) | (b == 0), 0.0, terms).sum(-2))


def starting_at(program: Program, variables: Sequence[int], mode: Mode) -> Reached:
    """Sources: one column for each entry of the variables."""
    sizes = [program.size(v) for v in variables]
    blocks = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
    return {v: {mode: block} for v, block in zip(variables, blocks, strict=True)}


def arriving_at(program: Program, reached: Reached, variables: Sequence[int], n: int) -> np.ndarray:
    """The sum over all modes at the variables, one below the other: ``[size, n]``."""
    zeros = [np.zeros((program.size(v), n)) for v in variables]
    sums = [
        sum(reached.get(v, {}).values(), zero) for v, zero in zip(variables, zeros, strict=True)
    ]
    return np.concatenate(sums) if sums else np.zeros((0, n))


def connected(program: Program, source: int, rule: Rule) -> set[int]:
    """The variables that paths from ``source`` reach, whatever the numbers are."""
    ones = [np.ones((1, 1))] * len(program.edges)
    return set(path_sums(program.edges, ones, {source: {NEAR: np.ones((1, 1))}}, rule))


# --- rules -----------------------------------------------------------------------------------


def everywhere(edge: Edge, mode: Mode) -> Mode:
    """All paths."""
    return mode


def uncrossed(edge: Edge, mode: Mode) -> Mode | None:
    """Paths that cross no ETP equation."""
    return None if edge.crosses else mode


def within(group_of: dict[int, int], g: int) -> Rule:
    """Uncrossed paths through no hidden state of another group: ``F``, and the diagonal ``D``."""
    return lambda edge, mode: None if edge.crosses or group_of.get(edge.target, g) != g else mode


def coupled(group_of: dict[int, int], g: int) -> Rule:
    """The coupled ``D``: a path, which starts far, may cross ETP equations until it arrives.

    It arrives at the first new value of the group that it meets, and is near from there on: it may
    go on to further members, but what leaves a new value through an ETP equation is in ``l``. A
    path that meets another group is dropped.
    """

    def rule(edge: Edge, mode: Mode) -> Mode | None:
        met = group_of.get(edge.target, g)
        if met != g or (mode == NEAR and edge.crosses):
            return None
        return NEAR if edge.target in group_of else mode

    return rule


def signal(group_of: dict[int, int], g: int) -> Rule:
    """Direct within the group, total across: the learning signal ``l``.

    A path is near until it crosses an ETP equation or leaves for another group. A near path that
    meets another member of its group is dropped: ``D`` and ``F`` have it already.
    """

    def rule(edge: Edge, mode: Mode) -> Mode | None:
        if mode == FAR or edge.crosses:
            return FAR
        met = group_of.get(edge.target)
        return NEAR if met is None else None if met == g else FAR

    return rule


def around(group_of: dict[int, int], g: int) -> Rule:
    """Paths through no new value of the group: ``e``."""
    return lambda edge, mode: None if group_of.get(edge.target) == g else mode


def outside_relations(group_of: dict[int, int], related: Collection[int]) -> Rule:
    """The ordinary derivative in the parameters, less what the relations account for.

    A path that enters an equation with a relation through a trainable operand takes the number of
    the equation as its mode (at ``y``, these paths sum to ``dY``). If it then meets a hidden state
    before it crosses an ETP equation, the relation accounts for it and it is dropped.
    """

    def rule(edge: Edge, mode: Mode) -> Mode | None:
        if edge.trainable and edge.equation in related:
            mode = edge.equation
        elif edge.crosses:
            mode = FAR
        return mode if mode == FAR or edge.target not in group_of else None

    return rule
