# SPDX-License-Identifier: Apache-2.0
"""Learning rules that differ in what they take for the influence of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from .downstream import FeedbackError, learn_downstream
from .filters import learn_coupled
from .graph import Graph
from .learn import OracleResult, carried, learn, masked, of_products
from .records import StepRecord, positions_of, record
from .step import Path

RecurrenceScope = Literal["diagonal", "coupled"]


def d_rtrl_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
    uniform: Iterable[Path] | None = None,
) -> OracleResult:
    r"""D-RTRL with the parameter-dimension trace, by path sums over dense local Jacobians.

    .. math::

        M_{r,g}^t &= D_g^t M_{r,g}^{t-1} + F_{r,g}^t \, \partial y_r^t / \partial \theta \\
        \nabla_\theta &= \sum_t \Bigl[ \sum_{r,g} \bigl( l_g^t M_{r,g}^t
            + e_g^t M_{r,g}^{t-1} \bigr) + \mathrm{direct}^t \Bigr]

    with the quantities of :class:`StepRecord`. Meant for tiny models in float64.

    Parameters
    ----------
    model, sequences, loss_fn
        As in :func:`bptt`.
    groups
        Hidden groups as lists of state paths, in place of those found in the model; a hidden state
        that is not named is a group of its own.
    recurrence_scope
        Which paths from an old to a new value of a group are in ``D``. None may meet another group.
        ``'diagonal'``: those that cross no ETP equation. ``'coupled'``: also those that cross ETP
        equations on the way to the first new value of the group that they meet; from there they may
        go on to other members of the group without crossing one (what leaves a new value through
        an ETP equation is in ``l``). Nothing else depends on the scope.
    uniform
        Paths of hidden states whose dynamics are linear and the same everywhere, such as the
        ``uniform`` of a compiled graph (there may be none): the rule with ``downstream='linear'``,
        in which a state is of the group that it follows position by position, in whatever layer.
        Kept from step to step is, besides, the influence on these states, of what drives them
        position by position and of every parameter on that way. Which paths these are follows from
        the numbers of the run: the equations that are affine in what varies, and the same at all
        steps but for factors that are the same everywhere. Nothing of the compiler is used, and no
        leak is moved.

    Returns
    -------
    OracleResult
        With ``uniform``, ``influences`` hold what the rule keeps of each operation on each group,
        on whatever way, those of number -1 of parameters outside of operations; ``steps`` is empty.
        With ``'coupled'``, there are no ``influences`` where these states lead to what drives them.

    Raises
    ------
    ValueError
        When the sequences have no common length, the loss is not a scalar, ``groups`` names
        something else than hidden states, ``recurrence_scope`` is none of the above, an ETP
        operation stands inside control flow, or a state that is named as uniform is not. With
        ``'coupled'``, where uniform states lead to what drives them, also when one of them has
        several leaks, or a factor other than its leak changes.

    Examples
    --------
    A recurrence that keeps positions apart, for which D-RTRL is exact:

    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = d_rtrl_oracle(cell, (xs,), loss)
    >>> assert_tree_close(result.grads, bptt(cell, (xs,), loss)[1], rtol=1e-5)

    A layer below a leaky readout, whose credit passes through the leak:

    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.product = braintrace.nn.Linear(2, 1, key=1)
    ...         self.v = brainstate.HiddenState(jax.numpy.zeros(1))
    ...     def update(self, x):
    ...         self.v.value = 0.9 * self.v.value + self.product(x)
    ...         return self.v.value
    >>> network = brainstate.nn.Sequential(cell, Leaky())
    >>> above = [("layers", 1, "v")]
    >>> result = d_rtrl_oracle(network, (xs,), loss, uniform=above)
    >>> assert_tree_close(result.grads, bptt(network, (xs,), loss)[1], rtol=1e-5)
    """
    scope = checked(recurrence_scope)
    if uniform is not None:
        named = tuple(uniform)
        try:
            return learn_downstream(
                model, sequences, loss_fn, uniform=named, groups=groups, scope=scope
            )
        except FeedbackError:
            return learn_coupled(model, sequences, loss_fn, uniform=named, groups=groups)
    return learn(record(model, sequences, loss_fn, groups, scope), carried)


def pp_prop_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    decay_x: float,
    decay_f: float | None = None,
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
    uniform: Iterable[Path] | None = None,
) -> OracleResult:
    r"""pp_prop (ES-D-RTRL) with input-output-dimension traces, over dense local Jacobians.

    .. math::

        \epsilon_{x,r}^t &= a_x \epsilon_{x,r}^{t-1} + x_r^t \\
        \epsilon_{r,g}^t &= a_f D_g^t \epsilon_{r,g}^{t-1} + (1 - a_f) F_{r,g}^t \\
        M_{r,g}^t &= \frac{\epsilon_{r,g}^t}{1 - a_f^{t+1}} \,
            \left. \frac{\partial y_r}{\partial \theta} \right|_{x = \epsilon_{x,r}^t}

    and the gradient from the influence matrices ``M`` as in :func:`d_rtrl_oracle`, which says what
    is taken, returned and raised.

    Parameters
    ----------
    decay_x, decay_f
        :math:`a_x` and :math:`a_f`, at least 0 and below 1; by default equal.
    uniform
        As in :func:`d_rtrl_oracle`; with an influence of the operations alone that a trace without
        these states would have, and of no parameter outside of operations. What follows such a
        state across no ETP equation is of its group.
    model, sequences, loss_fn, groups, recurrence_scope
        As in :func:`d_rtrl_oracle`.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import pp_prop_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> pp_prop_oracle(cell, (xs,), loss, decay_x=0.9).groups
    ((('h',),),)
    """
    scope = checked(recurrence_scope)
    decays = decay_x, decay_x if decay_f is None else decay_f
    if uniform is not None:
        return learn_downstream(
            model, sequences, loss_fn, uniform=uniform, groups=groups, scope=scope, decays=decays
        )
    return learn(record(model, sequences, loss_fn, groups, scope), of_products(*decays))


def rtrl_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    *,
    groups: Sequence[Sequence[Path]] | None = None,
) -> OracleResult:
    r"""Real-time recurrent learning within each group (Williams & Zipser, 1989).

    .. math::

        M_{r,g}^t = D_g^t M_{r,g}^{t-1} + F_{r,g}^t \, \partial y_r^t / \partial \theta

    where ``D_g`` is the whole Jacobian of the new in the old values of the group along the paths
    of the scope ``'coupled'``: :func:`d_rtrl_oracle`, without the restriction to equal positions.
    Arguments, results and errors are those of that function.

    For a model with one group, every parameter whose paths to the hidden state all run through
    one ETP operation and a position-wise tail has the gradient of :func:`bptt`, unless a new value
    of the group reaches another one through an ETP operation within a step.

    Parameters
    ----------
    model, sequences, loss_fn, groups
        As in :func:`d_rtrl_oracle`.

    Returns
    -------
    OracleResult

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import assert_tree_close, bptt, rtrl_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = rtrl_oracle(cell, (xs,), loss)
    >>> assert_tree_close(result.grads, bptt(cell, (xs,), loss)[1], rtol=1e-5)
    """
    return learn(record(model, sequences, loss_fn, groups, "full"), carried)


def snap_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    n: int,
    *,
    position_graphs: Mapping[int, Any] | None = None,
    groups: Sequence[Sequence[Path]] | None = None,
) -> OracleResult:
    r"""SnAp-n (Menick et al., 2020, arXiv 2006.07232): RTRL of what is near, the rest left out.

    For each element ``q`` of the output ``y`` of an ETP operation,

    .. math::

        E_q^t &= \mathrm{mask}_q \circ (D_g^t E_q^{t-1})
            + F_{r,g}^t[:, q] \; (\partial y_r^t / \partial \theta)[q, :] \\
        M_{r,g}^t &= \sum_q E_q^t

    with the ``D`` of :func:`rtrl_oracle`. ``mask[p, q]`` is 1 where the position of ``p`` can be
    reached in at most ``n - 1`` edges of the position graph from a position at which ``F[:, q]``
    is not structurally zero, and 0 elsewhere. With position-wise tails, ``n = 1`` is
    :func:`d_rtrl_oracle` in the scope ``'coupled'``; where ``n - 1`` edges lead everywhere, this is
    :func:`rtrl_oracle`. Other arguments, results and errors are those of these functions.

    Parameters
    ----------
    n
        At least 1.
    position_graphs
        By number of the group, ``[P, P]`` for ``P`` positions: whether the new value at the
        position of the row depends on the old one at the position of the column. By default, and
        for groups that are not named: where ``D``, over all states of the two positions, was not
        zero at any step. Of ``F``, too, what was zero at all steps is taken as structurally zero.
    model, sequences, loss_fn, groups
        As in :func:`d_rtrl_oracle`.

    Raises
    ------
    ValueError
        Also when ``n`` is less than 1, or a position graph has another shape.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import snap_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> [matrix.shape for matrix in snap_oracle(cell, (xs,), loss, n=1).steps[0].D.values()]
    [(2, 2)]
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    given = dict(position_graphs or {})
    run = record(model, sequences, loss_fn, groups, "full")

    def mask(steps: Sequence[StepRecord], r: int, g: int) -> np.ndarray:
        position = positions_of(run.graph, g)
        start = _by_position([now.F[r, g] for now in steps], position)
        reached = _reach(_position_graph(run.graph, steps, given, g), n - 1) @ start > 0
        return np.asarray(reached[position])

    return learn(run, masked(mask))


def checked(scope: RecurrenceScope) -> RecurrenceScope:
    """The scope, if it is one.

    Raises
    ------
    ValueError
        When it is not.
    """
    if scope not in get_args(RecurrenceScope):
        raise ValueError(
            f"recurrence_scope must be one of {get_args(RecurrenceScope)}, got {scope!r}"
        )
    return scope


def _position_graph(
    graph: Graph, steps: Sequence[StepRecord], given: Mapping[int, Any], g: int
) -> np.ndarray:
    """``[P, P]`` boolean, new in old."""
    position = positions_of(graph, g)
    if g not in given:
        rows = _by_position([now.D[g] for now in steps], position)
        return _by_position([rows.T], position).T
    found = np.asarray(given[g], dtype=bool)
    shape = (int(position.max()) + 1,) * 2
    if found.shape != shape:
        raise ValueError(f"position_graphs[{g}] must have shape {shape}, got {found.shape}")
    return found


def _by_position(matrices: Sequence[np.ndarray], position: np.ndarray) -> np.ndarray:
    """``[P, m]``: where any row of the position is not zero in any of ``[|g|, m]`` matrices."""
    found = np.any([matrix != 0 for matrix in matrices], axis=0)
    return np.stack([found[position == p].any(axis=0) for p in range(int(position.max()) + 1)])


def _reach(edges: np.ndarray, steps: int) -> np.ndarray:
    """``[P, P]``: which positions (rows) at most ``steps`` edges lead to, from which (columns)."""
    reached = np.eye(len(edges), dtype=bool)
    for _ in range(min(steps, len(edges))):
        reached = reached | (edges @ reached)
    return reached
