# SPDX-License-Identifier: Apache-2.0
"""Learning rules that replace the learning signal of D-RTRL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .downstream import learn_downstream
from .filters import Traced, TracedStates, carried_by, traced_states
from .graph import Graph
from .learn import OracleResult, carried, filtered, learn
from .oracle import RecurrenceScope, checked
from .records import Recorded, positions_of, record
from .step import Path, num_steps


def e_prop_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    kappa: float | None,
    feedback: Mapping[int, Any] | None = None,
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
    uniform: Iterable[Path] | None = None,
) -> OracleResult:
    r"""e-prop (Bellec et al., 2020, doi 10.1038/s41467-020-17236-y): a filtered influence.

    .. math::

        \bar M_{r,g}^t &= \kappa \bar M_{r,g}^{t-1} + M_{r,g}^t \\
        \nabla_\theta &= \sum_t \Bigl[ \sum_{r,g} \bigl( l_g^t \bar M_{r,g}^t
            + e_g^t \bar M_{r,g}^{t-1} \bigr) + \mathrm{direct}^t \Bigr]

    with the ``M``, ``l``, ``e`` and ``direct`` of :func:`d_rtrl_oracle`, which says what else is
    taken, returned and raised. Without a filter and feedback, it is that rule.

    Parameters
    ----------
    kappa
        Decay of the filter, at least 0 and below 1; ``None``: no filter but, with ``uniform``, the
        leaks of these states.
    feedback
        By number of the group, a matrix ``B`` ``[N, N]``, with ``N`` the length of the last axis
        of the group's positions. ``l`` and ``e`` are then replaced by
        :math:`l'[\ldots, j, s] = \sum_i l[\ldots, i, s] B[i, j]`: the same ``B`` for every state
        and every leading position. Groups that are not named keep theirs.
    uniform
        As in :func:`d_rtrl_oracle`. Where credit passes such a state ``u``, ``kappa`` takes the
        place of its leak for what is below, :math:`\bar M_u^t = \kappa \bar M_u^{t-1} + C_u^t M^t`,
        behind the derivative of what drives it, and nothing else is filtered. That is for networks
        with one such state on every way to the loss: what has none above it has no filter here.
        With feedback, each ``z`` that drives ``u`` has a filter, of the same positions as what is
        below: one more state of the group, whose signal is that of ``u`` through the region
        between, and then through the matrix. The weights in that region have no trace, and
        the signal of the loss.
    model, sequences, loss_fn, groups, recurrence_scope
        As in :func:`d_rtrl_oracle`.

    Raises
    ------
    ValueError
        Also when a matrix has another shape; with feedback, when a state that is named as uniform
        has several leaks, or a factor other than its leak changes.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import e_prop_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> sorted(e_prop_oracle(cell, (xs,), loss, kappa=0.5).grads)
    [('W_x', 'weight'), ('W_z', 'weight')]
    """
    scope = checked(recurrence_scope)
    if uniform is not None and feedback:
        traced = traced_states(
            model, sequences, loss_fn, uniform=uniform, groups=groups, scope=scope, kappa=kappa
        )
        fed = partial(_fed_back_to, traced.layers.graph, feedback)
        return traced.result(carried_by(traced, lambda states, signal, _: fed(states, signal)))
    if uniform is not None:
        return learn_downstream(
            model, sequences, loss_fn, uniform=uniform, groups=groups, scope=scope, kappa=kappa
        )
    run = record(model, sequences, loss_fn, groups, scope)
    return learn(_fed_back(run, feedback or {}), filtered(carried, kappa or 0.0))


def three_factor_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    modulators: Any,
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
    uniform: Iterable[Path] | None = None,
) -> OracleResult:
    r"""A three-factor rule: a modulator in place of the learning signal of :func:`d_rtrl_oracle`.

    .. math::

        \nabla_\theta = \sum_t \Bigl[ \sum_{r,g} m^t M_{r,g}^t + \mathrm{direct}^t \Bigr]

    (Frémaux & Gerstner, 2016, doi 10.3389/fncir.2015.00085), where ``m^t`` holds at every state of
    a position and ``e`` is zero. Other arguments, results and errors are those of that function.

    Parameters
    ----------
    modulators
        ``[T]``, or ``[T, *V]`` with ``V`` that broadcasts, axis by axis, to the positions of every
        group.
    uniform
        As in :func:`d_rtrl_oracle`. The modulator then holds at these states, whose traces are of
        the operations that lead to them across no other one, and, for each value that drives one,
        at a filter of its influence with the leak of that state, without factors between that are
        constant. None of these states may drive another one.
    model, sequences, loss_fn, groups, recurrence_scope
        As in :func:`d_rtrl_oracle`.

    Raises
    ------
    ValueError
        Also when there is not one modulator for every step, or it does not fit a group.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import three_factor_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = three_factor_oracle(cell, (xs,), loss, modulators=[0.0, 1.0])
    >>> result.steps[0].l[0].tolist()
    [0.0, 0.0]
    """
    values, length = np.asarray(modulators), num_steps(sequences)
    if values.ndim == 0 or len(values) != length:
        raise ValueError(f"modulators must have shape ({length}, ...), got {values.shape}")
    scope = checked(recurrence_scope)
    if uniform is not None:
        traced = traced_states(
            model, sequences, loss_fn, uniform=uniform, groups=groups, scope=scope, near=True
        )
        return traced.result(_modulated(traced, values))
    run = record(model, sequences, loss_fn, groups, scope)
    steps = tuple(
        replace(
            now,
            l={g: _at_every_state(run.graph, g, value) for g in now.l},
            e={g: np.zeros_like(e) for g, e in now.e.items()},
        )
        for now, value in zip(run.steps, values, strict=True)
    )
    return learn(replace(run, steps=steps), carried)


def _modulated(traced: Traced, values: np.ndarray) -> np.ndarray:
    """The gradient of a modulator, at members, filters and uniform states."""

    def given(states: TracedStates, signal: np.ndarray, t: int) -> np.ndarray:
        spread = _at_positions(values[t], states.shape)
        return states.laid(np.broadcast_to(spread, (sum(states.counts), *states.shape)))

    grad = carried_by(traced, given, old=False)
    for value, rows in zip(values, traced.of_uniform, strict=True):
        hidden = (u.hidden for u in traced.layers.uniform)
        at = [_at_positions(value, h.varshape).ravel()[h.positions] for h in hidden]
        grad = grad + np.concatenate(at) @ rows
    return grad


def _at_every_state(graph: Graph, g: int, value: np.ndarray) -> np.ndarray:
    """``[|g|]``: a value for each position, repeated for its states."""
    spread = _at_positions(value, graph.groups[g][0].varshape)
    return np.asarray(spread.ravel()[positions_of(graph, g)])


def _at_positions(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A modulator, spread over positions."""
    if value.ndim not in (0, len(shape)):
        raise ValueError(
            f"a modulator of shape {value.shape} has not the axes of the positions {shape}; which "
            "of them it lacks does not follow from numbers"
        )
    return np.broadcast_to(value, shape)


def _fed_back(run: Recorded, feedback: Mapping[int, Any]) -> Recorded:
    """The run with ``l`` and ``e`` of the named groups replaced."""

    def through(signals: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        return signals | {g: _mixed(run.graph, g, signals[g], B) for g, B in feedback.items()}

    return replace(
        run, steps=tuple(replace(now, l=through(now.l), e=through(now.e)) for now in run.steps)
    )


def _fed_back_to(
    graph: Graph, feedback: Mapping[int, Any], states: TracedStates, signal: np.ndarray
) -> np.ndarray:
    """The signal of members and filters, replaced if their group is named."""
    if states.number not in feedback:
        return signal
    size, members = math.prod(states.shape), graph.groups[states.number]
    own = sum(h.positions.size for h in members)
    matrix = np.asarray(feedback[states.number])
    filters = signal[own:].reshape(-1, *states.shape) @ matrix if size else signal[own:]
    mixed = _mixed(graph, states.number, signal[:own], matrix)
    return np.concatenate([mixed, filters.ravel()])


def _mixed(graph: Graph, g: int, signal: np.ndarray, B: Any) -> np.ndarray:
    """``l @ B`` over the last axis of the positions, member by member."""
    members, matrix = graph.groups[g], np.asarray(B)
    shape = (members[0].varshape[-1],) * 2
    if matrix.shape != shape:
        raise ValueError(f"feedback[{g}] must have shape {shape}, got {matrix.shape}")
    pieces = np.split(signal, np.cumsum([h.positions.size for h in members])[:-1])
    mixed = [
        np.einsum("...is,ij->...js", piece.reshape(*h.varshape, h.num_state), matrix).ravel()
        for h, piece in zip(members, pieces, strict=True)
    ]
    return np.concatenate(mixed)
