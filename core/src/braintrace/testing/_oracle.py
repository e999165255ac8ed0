# SPDX-License-Identifier: Apache-2.0
"""Learning rules as plain loops over dense per-step Jacobians: what the compiler must reproduce.

Nothing here is taken from the compiler, the executor or the algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import numpy as np

from ._graph import Graph, build_graph
from ._paths import (
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
from ._program import evaluate
from ._step import Path, Step, entry, num_steps, trace_step

RecurrenceScope = Literal["diagonal", "coupled"]


@dataclass(frozen=True)
class StepRecord:
    r"""Everything a learning rule needs of one step, as dense matrices.

    Groups ``g`` and ETP equations ``r`` are numbers; ``|g|`` is the number of entries of the
    members of a group, one member after the other; ``n`` is the number of parameter entries.

    - ``D[g]`` ``[|g|, |g|]``: :math:`\partial h_g^t / \partial h_g^{t-1}` along the paths of the
      recurrence scope (see :func:`d_rtrl_oracle`), entries at equal positions only: where a
      transition mixes positions, this is the true block diagonal, never a sum over positions;
    - ``F[r, g]`` ``[|g|, size(y)]``: :math:`\partial h_g^t / \partial y_r` along paths that cross
      no ETP equation and meet no other group;
    - ``dY[r]`` ``[size(y), n]``: :math:`\partial y_r / \partial \theta` through the trainable
      operands; ``dY_at[r](x)``: the same with another input of the operation;
    - ``x[r]``: the input of the ETP operation, ``None`` when it has none;
    - ``l[g]`` ``[|g|]``: :math:`\partial L^t / \partial h_g^t`, direct within the group, total
      across groups and ETP equations;
    - ``e[g]`` ``[|g|]``: :math:`\partial L^t / \partial h_g^{t-1}` along paths that meet no new
      value of the group;
    - ``direct`` ``[n]``: :math:`\partial L^t / \partial \theta` along paths of no relation.
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
class OracleResult:
    """What a learning rule gives on a sequence.

    - ``loss`` ``[T]``; ``outputs``: the model's, with a leading time axis;
    - ``grads``: by path of the ``ParamState``, a pytree like its value;
    - ``influence``: by relation ``(r, g)`` and path, the last influence matrix (what the rule
      takes for it), a pytree with leaves ``[|g|, *leaf.shape]``;
    - ``groups``: paths of the members of each group; ``relations``: pairs ``(r, g)``;
      ``names``: name of the primitive of each ``r``;
    - ``steps``: the record of every step.
    """

    loss: np.ndarray
    outputs: Any
    grads: dict[Path, Any]
    influence: dict[tuple[int, int], dict[Path, Any]]
    groups: tuple[tuple[Path, ...], ...]
    relations: tuple[tuple[int, int], ...]
    names: dict[int, str]
    steps: tuple[StepRecord, ...]


def d_rtrl_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
) -> OracleResult:
    r"""D-RTRL with the parameter-dimension trace, by path sums over dense local Jacobians.

    .. math::

        M_{r,g}^t &= D_g^t M_{r,g}^{t-1} + F_{r,g}^t \, \partial y_r^t / \partial \theta \\
        \nabla_\theta &= \sum_t \Big[ \sum_{r,g} \big( l_g^t M_{r,g}^t + e_g^t M_{r,g}^{t-1} \big)
            + \mathrm{direct}^t \Big]

    with the quantities of :class:`StepRecord`. Meant for tiny models in float64.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states, which are left as they are.
    sequences
        Arrays (or pytrees of arrays) ``[T, ...]``: the model's input, then what the loss takes.
    loss_fn
        ``loss_fn(out, *rest) -> scalar``.
    groups
        Hidden groups as lists of state paths, in place of those found in the model; a hidden state
        that is not named is a group of its own.
    recurrence_scope
        Which paths from an old to a new value of a group are in ``D``. None may meet another group.
        ``'diagonal'``: those that cross no ETP equation. ``'coupled'``: also those that cross ETP
        equations on the way to the first new value of the group that they meet; from there they may
        go on to other members of the group without crossing one (what leaves a new value through
        an ETP equation is in ``l``). Nothing else depends on the scope.

    Returns
    -------
    OracleResult

    Raises
    ------
    ValueError
        When the sequences have no common length, the loss is not a scalar, ``groups`` names
        something else than hidden states, ``recurrence_scope`` is none of the above, or an ETP
        operation stands inside control flow.
    """

    def influences(steps: Sequence[StepRecord], r: int, g: int) -> Iterator[np.ndarray]:
        matrix = np.zeros((steps[0].F[r, g].shape[0], steps[0].dY[r].shape[1]))
        for now in steps:
            matrix = now.D[g] @ matrix + now.F[r, g] @ now.dY[r]
            yield matrix

    return _learn(model, sequences, loss_fn, groups, recurrence_scope, influences)


def pp_prop_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    decay_x: float,
    decay_f: float | None = None,
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
) -> OracleResult:
    r"""pp_prop (ES-D-RTRL) with input-output-dimension traces, over dense local Jacobians.

    .. math::

        \epsilon_{x,r}^t &= a_x \epsilon_{x,r}^{t-1} + x_r^t \\
        \epsilon_{r,g}^t &= a_f D_g^t \epsilon_{r,g}^{t-1} + (1 - a_f) F_{r,g}^t \\
        M_{r,g}^t &= \frac{\epsilon_{r,g}^t}{1 - a_f^{t+1}} \,
            \frac{\partial y_r}{\partial \theta} \bigg|_{x = \epsilon_{x,r}^t}

    and the gradient from the influence matrices ``M`` as in :func:`d_rtrl_oracle`, which says what
    is taken, returned and raised.

    Parameters
    ----------
    decay_x, decay_f
        :math:`a_x` and :math:`a_f`, at least 0 and below 1; by default equal.
    """
    decay_f = decay_x if decay_f is None else decay_f

    def influences(steps: Sequence[StepRecord], r: int, g: int) -> Iterator[np.ndarray]:
        x: Any = 0.0
        factor = np.zeros_like(steps[0].F[r, g])
        for t, now in enumerate(steps):
            x = None if now.x[r] is None else decay_x * x + now.x[r]
            factor = decay_f * now.D[g] @ factor + (1 - decay_f) * now.F[r, g]
            yield factor / (1 - decay_f ** (t + 1)) @ now.dY_at[r](x)

    return _learn(model, sequences, loss_fn, groups, recurrence_scope, influences)


Influences = Callable[[Sequence[StepRecord], int, int], Iterator[np.ndarray]]
"""The influence matrix of relation ``(r, g)`` after each step, ``[|g|, n]``."""


def _learn(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    groups: Sequence[Sequence[Path]] | None,
    recurrence_scope: RecurrenceScope,
    influences: Influences,
) -> OracleResult:
    """Signals times influences, plus what is direct, summed over the steps."""
    if recurrence_scope not in get_args(RecurrenceScope):
        raise ValueError(
            f"recurrence_scope must be one of {get_args(RecurrenceScope)}, got {recurrence_scope!r}"
        )
    step = trace_step(model, sequences, loss_fn)
    graph = build_graph(step, groups)
    out, loss, steps = _run(step, graph, sequences, recurrence_scope)
    grad = np.sum([now.direct for now in steps], axis=0)
    influence = {}
    for r, g in graph.relations:
        before = np.zeros((steps[0].F[r, g].shape[0], grad.size))
        for now, matrix in zip(steps, influences(steps, r, g), strict=True):
            grad = grad + now.l[g] @ matrix + now.e[g] @ before
            before = matrix
        influence[r, g] = before
    return OracleResult(
        loss=loss,
        outputs=out,
        grads=_by_path(step, graph, grad),
        influence={key: _by_path(step, graph, matrix) for key, matrix in influence.items()},
        groups=tuple(tuple(h.path for h in members) for members in graph.groups),
        relations=graph.relations,
        names={r: graph.program.equations[r].primitive.name for r in graph.related},
        steps=tuple(steps),
    )


def _run(
    step: Step, graph: Graph, sequences: tuple[Any, ...], scope: RecurrenceScope
) -> tuple[Any, np.ndarray, list[StepRecord]]:
    """Outputs, losses and records of all steps."""
    program, num_out = graph.program, step.out_tree.num_leaves
    states = jax.tree.leaves(step.values)
    outs, losses, records = [], [], []
    for t in range(num_steps(sequences)):
        values, jacobians = program.linearise([*jax.tree.leaves(entry(sequences, t)), *states])
        results = [values[v] for v in program.outputs]
        states = results[num_out:]
        out, loss = jax.tree.unflatten(step.out_tree, results[:num_out])
        outs.append(out)
        losses.append(loss)
        dense = [np.asarray(j, dtype=float) for j in jacobians]
        records.append(_record(graph, values, dense, scope))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *outs)
    return stacked, np.stack(losses), records


def _record(
    graph: Graph, values: list[Any], jacobians: list[np.ndarray], scope: RecurrenceScope
) -> StepRecord:
    program, group_of = graph.program, graph.group_of

    def sums(sources: Reached, rule: Any) -> Reached:
        return path_sums(program.edges, jacobians, sources, rule)

    start, recurrent = (NEAR, within) if scope == "diagonal" else (FAR, coupled)
    D, signals, old = {}, {}, {}
    for g, members in enumerate(graph.groups):
        before, after = [h.old for h in members], [h.new for h in members]
        n = sum(map(program.size, after))
        position = np.concatenate([h.positions for h in members])
        total = sums(starting_at(program, before, start), recurrent(group_of, g))
        same = position[:, None] == position[None, :]
        D[g] = np.where(same, arriving_at(program, total, after, n), 0.0)
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
        r: partial(_with_input, graph, values, reached, r, n) for r in graph.related
    }
    direct = arriving_at(program, reached, [graph.loss], n)[0]
    x = {r: _x(graph, values, r) for r in graph.related}
    return StepRecord(D=D, F=F, dY=dY, dY_at=dY_at, x=x, l=signals, e=old, direct=direct)


def _with_input(
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
            total += np.asarray(local) @ sum(reached.get(edge.source, {}).values(), zeros)
    return total


def _x(graph: Graph, values: list[Any], r: int) -> np.ndarray | None:
    equation = graph.program.equations[r]
    index = equation.primitive.spec.x_invar_index
    return None if index is None else np.asarray(values[equation.operands[index]])


def _by_path(step: Step, graph: Graph, rows: np.ndarray) -> dict[Path, Any]:
    """``[..., n]`` as a pytree of ``[..., *leaf.shape]`` for every parameter; zero if not used."""
    lead = rows.shape[:-1]
    ends = np.cumsum([graph.program.size(v) for v in graph.leaves])
    pieces = iter(np.split(rows, ends[:-1], axis=-1))
    used = {path: [next(pieces) for _ in leaves] for path, leaves in graph.parameters.items()}
    result = {}
    for path, value in step.parameters.items():
        leaves, tree = jax.tree.flatten(value)
        flat = used.get(path) or [np.zeros((*lead, np.size(leaf))) for leaf in leaves]
        shaped = [f.reshape((*lead, *np.shape(leaf))) for f, leaf in zip(flat, leaves, strict=True)]
        result[path] = jax.tree.unflatten(tree, shaped)
    return result
