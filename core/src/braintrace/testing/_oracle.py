# SPDX-License-Identifier: Apache-2.0
"""Learning rules as plain loops over dense per-step Jacobians: what the compiler must reproduce.

Nothing here is taken from the compiler, the executor or the algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
      operands;
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
    x: dict[int, np.ndarray | None]
    l: dict[int, np.ndarray]  # noqa: E741
    e: dict[int, np.ndarray]
    direct: np.ndarray


@dataclass(frozen=True)
class OracleResult:
    """What a learning rule gives on a sequence.

    - ``loss`` ``[T]``; ``outputs``: the model's, with a leading time axis;
    - ``grads``: by path of the ``ParamState``, a pytree like its value;
    - ``influence``: by relation ``(r, g)`` and path, the last influence matrix, a pytree with
      leaves ``[|g|, *leaf.shape]``;
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
    if recurrence_scope not in get_args(RecurrenceScope):
        raise ValueError(
            f"recurrence_scope must be one of {get_args(RecurrenceScope)}, got {recurrence_scope!r}"
        )
    step = trace_step(model, sequences, loss_fn)
    graph = build_graph(step, groups)
    out, loss, steps = _run(step, graph, sequences, recurrence_scope)
    n = sum(map(graph.program.size, graph.leaves))
    grad = np.zeros(n)
    influence = {(r, g): np.zeros((steps[0].D[g].shape[0], n)) for r, g in graph.relations}
    for now in steps:
        grad += now.direct
        for r, g in graph.relations:
            before = influence[r, g]
            influence[r, g] = now.D[g] @ before + now.F[r, g] @ now.dY[r]
            grad += now.l[g] @ influence[r, g] + now.e[g] @ before
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
    direct = arriving_at(program, reached, [graph.loss], n)[0]
    x = {r: _x(graph, values, r) for r in graph.related}
    return StepRecord(D=D, F=F, dY=dY, x=x, l=signals, e=old, direct=direct)


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
