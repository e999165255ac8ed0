# SPDX-License-Identifier: Apache-2.0
"""The influence of every parameter on every carried state, from dense Jacobians of whole steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import brainstate
import jax
import numpy as np

from .graph import Graph, build_graph
from .learn import by_path
from .paths import NEAR, arriving_at, everywhere, path_sums, product, starting_at
from .program import flatten, is_float, parts_of
from .step import Path, Step, entry, num_steps, trace_step


@dataclass(frozen=True)
class InfluenceResult:
    """What :func:`influence_oracle` finds.

    Attributes
    ----------
    loss
        ``[T]``.
    outputs
        The model's, with a leading time axis.
    grads
        By path of the ``ParamState``, a pytree like its value.
    influences
        ``[T, m, n]``: of all parameter entries on all entries of carried states, after each step.
        A complex number is two entries, all real parts before all imaginary parts.
    states
        The path of the state of each leaf that is carried, in the order of the rows.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> cell = braintrace.nn.GRUCell(2, 4)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (3, 2))
    >>> result = braintrace.testing.influence_oracle(cell, (xs,), lambda h: (h**2).sum())
    >>> result.states, result.influences.shape, result.loss.shape
    ((('h',),), (3, 4, 84), (3,))
    """

    loss: np.ndarray
    outputs: Any
    grads: dict[Path, Any]
    influences: np.ndarray
    states: tuple[Path, ...]


@dataclass(frozen=True)
class _Carried:
    """A leaf of a state: its number among the leaves of all states, whose it is, its value."""

    number: int
    path: Path
    value: Any


@dataclass(frozen=True)
class _Record:
    """A step: ``J`` [m, m], ``P`` [m, n], and the loss in new and old states and parameters.

    The derivatives of the loss are along paths that meet no new value of a state.
    """

    J: np.ndarray
    P: np.ndarray
    of_new: np.ndarray
    of_old: np.ndarray
    direct: np.ndarray


def influence_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    n: int | None = None,
    *,
    groups: Sequence[Sequence[Path]] | None = None,
) -> InfluenceResult:
    r"""RTRL and SnAp-n of a whole step (Williams & Zipser, 1989; Menick et al., 2020).

    .. math::

        M^t &= \mathrm{mask} \circ \Bigl( \frac{\partial s^t}{\partial s^{t-1}} M^{t-1}
            + \frac{\partial s^t}{\partial \theta} \Bigr) \\
        \nabla_\theta &= \sum_t \frac{\partial L^t}{\partial s^t} M^t
            + \frac{\partial L^t}{\partial s^{t-1}} M^{t-1} + \frac{\partial L^t}{\partial \theta}

    where ``s`` are all states of the model that are no parameters. The derivatives of ``s`` are
    along all paths of the step, those of ``L`` along the paths that meet no new state on their way.

    Parameters
    ----------
    model, sequences, loss_fn, groups
        As in :func:`d_rtrl_oracle`.
    n
        ``None``: nothing is masked, and the gradient is that of :func:`bptt`. At least 1: an entry
        is kept where the position of the state can be reached from the parameter entry in at most
        ``n`` steps. Entries of hidden states of one group at the same position are one position,
        each entry of another state is its own; which depends on which is where a derivative was
        not zero at any step.

    Returns
    -------
    InfluenceResult

    Raises
    ------
    ValueError
        As :func:`d_rtrl_oracle`, and when ``n`` is less than 1.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import assert_tree_close, bptt, influence_oracle
    >>> cell = braintrace.nn.GRUCell(2, 2)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (3, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = influence_oracle(cell, (xs,), loss)
    >>> assert_tree_close(result.grads, bptt(cell, (xs,), loss)[1], rtol=1e-4)
    """
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    step = trace_step(model, sequences, loss_fn)
    graph, carried, olds, news = _graph(step, groups)
    num_out, states = step.out_tree.num_leaves, jax.tree.leaves(step.values)
    steps: list[_Record] = []
    losses: list[Any] = []
    outs: list[Any] = []
    for t in range(num_steps(sequences)):
        inputs = [*jax.tree.leaves(entry(sequences, t)), *states]
        values, jacobians = graph.program.linearise(inputs)
        results = [values[v] for v in graph.program.outputs]
        states = results[num_out:]
        out, loss = jax.tree.unflatten(step.out_tree, results[:num_out])
        outs, losses = [*outs, out], [*losses, loss]
        steps.append(_record(graph, jacobians, olds, news))
    mask: Any = 1.0
    if n is not None:
        edges = np.any([now.J != 0 for now in steps], axis=0)
        starts = np.any([now.P != 0 for now in steps], axis=0)
        mask = _mask(edges, starts, _positions(graph, carried), n)
    grad = np.zeros(steps[0].direct.size)
    before: np.ndarray = np.zeros_like(steps[0].P)
    influences: list[np.ndarray] = []
    for now in steps:
        after = mask * (product(now.J, before) + now.P)
        grad = grad + product(now.of_new, after) + product(now.of_old, before) + now.direct
        influences, before = [*influences, after], after
    return InfluenceResult(
        loss=np.stack(losses),
        outputs=jax.tree.map(lambda *leaves: np.stack(leaves), *outs),
        grads=by_path(step, graph, grad),
        influences=np.stack(influences),
        states=tuple(leaf.path for leaf in carried),
    )


def _graph(step: Step, groups: Any) -> tuple[Graph, list[_Carried], list[int], list[int]]:
    """The step with a variable for each new value that is carried; old and new variables."""
    found, parameters, start = [], {}, 0
    for path, state, value in zip(step.paths, step.states, step.values, strict=True):
        leaves = jax.tree.leaves(value)
        if path is not None and isinstance(state, brainstate.ParamState):
            parameters[path] = range(start, start + len(leaves))
        elif path is not None:
            own = ((start + k, leaf) for k, leaf in enumerate(leaves) if is_float(leaf))
            hidden = isinstance(state, brainstate.HiddenState)
            found += [(not hidden, _Carried(k, path, leaf)) for k, leaf in own]
        start += len(leaves)
    carried = [leaf for _, leaf in sorted(found, key=lambda pair: pair[0])]  # hidden ones first
    first_input, first_output = len(jax.tree.leaves(step.example)), step.out_tree.num_leaves
    program = flatten(
        step.jaxpr,
        parameters={first_input + k for own in parameters.values() for k in own},
        olds=[first_input + leaf.number for leaf in carried],
        hidden=[first_output + leaf.number for leaf in carried],
    )
    graph = replace(
        build_graph(step, groups),
        program=program,
        parameters={
            path: tuple(program.inputs[first_input + k] for k in own)
            for path, own in parameters.items()
        },
        loss=program.outputs[first_output - 1],
    )
    olds = [program.inputs[first_input + leaf.number] for leaf in carried]
    return graph, carried, olds, [program.outputs[first_output + leaf.number] for leaf in carried]


def _record(graph: Graph, jacobians: list[np.ndarray], olds: list[int], news: list[int]) -> _Record:
    program, ends = graph.program, {*news}
    leaves = [*olds, *graph.leaves]
    m, n = sum(map(program.size, olds)), sum(map(program.size, graph.leaves))

    def around(edge: Any, mode: Any) -> Any:
        return None if edge.target in ends else mode

    def sums(sources: list[int], rule: Any) -> Any:
        return path_sums(program.edges, jacobians, starting_at(program, sources, NEAR), rule)

    whole = arriving_at(program, sums(leaves, everywhere), news, m + n)
    past = arriving_at(program, sums(leaves, around), [graph.loss], m + n)[0]
    now = arriving_at(program, sums(news, around), [graph.loss], m)[0]
    return _Record(whole[:, :m], whole[:, m:], now, past[:m], past[m:])


def _positions(graph: Graph, carried: Sequence[_Carried]) -> np.ndarray:
    """The number of the position of every entry of the states."""
    known: dict[Path, np.ndarray] = {}
    count = 0
    for members in graph.groups:
        known |= {h.path: count + h.positions for h in members}
        count += 1 + max(int(h.positions.max()) for h in members)
    found = []
    for leaf in carried:
        size = np.size(leaf.value)
        if leaf.path not in known:
            found.append(np.tile(count + np.arange(size), parts_of(leaf.value)))
            count += size
        else:
            found.append(known[leaf.path])
    return np.concatenate(found)


def _mask(edges: np.ndarray, starts: np.ndarray, numbers: np.ndarray, n: int) -> np.ndarray:
    """``[m, n]``: where the position of a state is at most ``n`` steps from a parameter entry."""
    member = np.arange(1 + numbers.max())[:, None] == numbers
    between, reached = member @ edges @ member.T > 0, member @ starts > 0
    for _ in range(min(n - 1, len(between))):
        reached = reached | (between @ reached)
    return np.asarray(reached[numbers])
