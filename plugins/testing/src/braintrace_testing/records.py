# SPDX-License-Identifier: Apache-2.0
"""A model run step by step, with everything a learning rule needs of each step as dense matrices.

Nothing here is taken from the compiler, the executor or the algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from .graph import Graph, build_graph
from .paths import (
    FAR,
    NEAR,
    Reached,
    around,
    arriving_at,
    coupled,
    outside_relations,
    path_sums,
    signal,
    starting_at,
    within,
)
from .program import evaluate, matrix_of
from .step import Path, Step, entry, num_steps, trace_step

Scope = Literal["diagonal", "coupled", "full"]
"""Which derivatives are in ``D``; ``'full'``: those of ``'coupled'``, at all positions."""


@dataclass(frozen=True)
class StepRecord:
    r"""Everything a learning rule needs of one step, as dense matrices.

    Groups ``g`` and ETP equations ``r`` are numbers; ``|g|`` is the number of entries of the
    members of a group, one member after the other; ``n`` is the number of parameter entries. A
    complex number is two entries: of an array, all real parts come before all imaginary parts.

    Attributes
    ----------
    D
        ``D[g]`` ``[|g|, |g|]``: :math:`\partial h_g^t / \partial h_g^{t-1}` along the paths of the
        recurrence scope (see :func:`d_rtrl_oracle`), entries at equal positions only: where a
        transition mixes positions, this is the true block diagonal, never a sum over positions
        (:func:`rtrl_oracle` and :func:`snap_oracle` have the entries at all positions).
    F
        ``F[r, g]`` ``[|g|, size(y)]``: :math:`\partial h_g^t / \partial y_r` along paths that
        cross no ETP equation and meet no other group.
    dY
        ``dY[r]`` ``[size(y), n]``: :math:`\partial y_r / \partial \theta` through the trainable
        operands.
    dY_at
        ``dY_at[r](x)``: the same with another input of the operation.
    x
        ``x[r]``: the input of the ETP operation, ``None`` when it has none.
    l
        ``l[g]`` ``[|g|]``: :math:`\partial L^t / \partial h_g^t`, direct within the group, total
        across groups and ETP equations, or what the rule takes for it.
    e
        ``e[g]`` ``[|g|]``: :math:`\partial L^t / \partial h_g^{t-1}` along paths that meet no new
        value of the group, or what the rule takes for it.
    direct
        ``[n]``: :math:`\partial L^t / \partial \theta` along paths of no relation.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import d_rtrl_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (1, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> (now,) = d_rtrl_oracle(cell, (xs,), loss).steps
    >>> now.D[0].shape, now.l[0].shape, now.direct.shape
    ((2, 2), (2,), (12,))
    """

    D: dict[int, np.ndarray]
    F: dict[tuple[int, int], np.ndarray]
    dY: dict[int, np.ndarray]
    dY_at: dict[int, Callable[[Any], np.ndarray]]
    x: dict[int, np.ndarray | None]
    l: dict[int, np.ndarray]  # noqa: E741
    e: dict[int, np.ndarray]
    direct: np.ndarray


@dataclass(frozen=True)
class Recorded:
    """A model run over a sequence: outputs and ``loss`` ``[T, ...]``, a record for every step."""

    step: Step
    graph: Graph
    outputs: Any
    loss: np.ndarray
    steps: tuple[StepRecord, ...]


@dataclass(frozen=True)
class Run:
    """A step that was run: the values of all variables, a Jacobian for each edge."""

    values: list[Any]
    jacobians: list[np.ndarray]
    out: Any
    loss: Any


def run_steps(step: Step, graph: Graph, sequences: tuple[Any, ...]) -> Iterator[Run]:
    """Every step of sequences, from the present values of the states."""
    program, num_out = graph.program, step.out_tree.num_leaves
    states = jax.tree.leaves(step.values)
    for t in range(num_steps(sequences)):
        values, jacobians = program.linearise([*jax.tree.leaves(entry(sequences, t)), *states])
        results = [values[v] for v in program.outputs]
        states = results[num_out:]
        yield Run(values, jacobians, *jax.tree.unflatten(step.out_tree, results[:num_out]))


def record(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    groups: Sequence[Sequence[Path]] | None,
    scope: Scope,
) -> Recorded:
    """Run a model from its present states, which are left as they are."""
    step = trace_step(model, sequences, loss_fn)
    graph = build_graph(step, groups)
    runs = list(run_steps(step, graph, sequences))
    return Recorded(
        step,
        graph,
        jax.tree.map(lambda *leaves: np.stack(leaves), *(now.out for now in runs)),
        np.stack([now.loss for now in runs]),
        tuple(_record(graph, now.values, now.jacobians, scope) for now in runs),
    )


def positions_of(graph: Graph, g: int) -> np.ndarray:
    """``[|g|]``: the number of the position of every entry of a group."""
    return np.concatenate([h.positions for h in graph.groups[g]])


def _record(
    graph: Graph, values: list[Any], jacobians: list[np.ndarray], scope: Scope
) -> StepRecord:
    program, group_of = graph.program, graph.group_of

    def sums(sources: Reached, rule: Any) -> Reached:
        return path_sums(program.edges, jacobians, sources, rule)

    D, signals, old = {}, {}, {}
    for g, members in enumerate(graph.groups):
        before, after = [h.old for h in members], [h.new for h in members]
        n = sum(map(program.size, after))
        D[g] = _transition(graph, jacobians, g, scope)
        near = sums(starting_at(program, after, NEAR), signal(group_of, g))
        signals[g] = arriving_at(program, near, [graph.loss], n)[0]
        kept = sums(starting_at(program, before, NEAR), around(group_of, g))
        old[g] = arriving_at(program, kept, [graph.loss], n)[0]

    F = {}
    for r, g in graph.relations:
        y = graph.y(r)
        reached = sums(starting_at(program, [y], NEAR), within(group_of, g))
        F[r, g] = arriving_at(program, reached, [h.new for h in graph.groups[g]], program.size(y))

    n = sum(map(program.size, graph.leaves))
    reached = sums(
        starting_at(program, graph.leaves, FAR), outside_relations(group_of, graph.related)
    )
    dY = {
        r: reached.get(graph.y(r), {}).get(r, np.zeros((program.size(graph.y(r)), n)))
        for r in graph.related
    }
    dY_at: dict[int, Callable[[Any], np.ndarray]] = {
        r: partial(with_input, graph, values, reached, r, n) for r in graph.related
    }
    direct = arriving_at(program, reached, [graph.loss], n)[0]
    x = {r: input_of(graph, values, r) for r in graph.related}
    return StepRecord(D=D, F=F, dY=dY, dY_at=dY_at, x=x, l=signals, e=old, direct=direct)


def _transition(graph: Graph, jacobians: list[np.ndarray], g: int, scope: Scope) -> np.ndarray:
    """New values of a group in its old ones, ``[|g|, |g|]``."""
    program, members = graph.program, graph.groups[g]
    start, recurrent = (NEAR, within) if scope == "diagonal" else (FAR, coupled)
    sources = starting_at(program, [h.old for h in members], start)
    reached = path_sums(program.edges, jacobians, sources, recurrent(graph.group_of, g))
    position = positions_of(graph, g)
    total = arriving_at(program, reached, [h.new for h in members], position.size)
    return total if scope == "full" else np.where(position[:, None] == position, total, 0.0)


def with_input(
    graph: Graph, values: list[Any], reached: Reached, r: int, n: int, x: Any
) -> np.ndarray:
    """``dY[r]`` of a step, had the operation the input ``x``."""
    program, equation = graph.program, graph.program.equations[r]
    operands, index = [values[v] for v in equation.operands], equation.primitive.spec.x_invar_index
    if index is not None:
        operands[index] = np.asarray(x, operands[index].dtype)
    total = np.zeros((program.size(equation.results[0]), n))
    for edge in program.edges:
        if edge.equation == r and edge.trainable:
            _, (local,) = evaluate(equation.run, ((edge.operand, edge.result),), operands)
            zeros = np.zeros((local.shape[1], n))
            total += matrix_of(local) @ sum(reached.get(edge.source, {}).values(), zeros)
    return total


def input_of(graph: Graph, values: list[Any], r: int) -> np.ndarray | None:
    """The input of an ETP operation, if it has one."""
    equation = graph.program.equations[r]
    index = equation.primitive.spec.x_invar_index
    return None if index is None else np.asarray(values[equation.operands[index]])
