# SPDX-License-Identifier: Apache-2.0
"""Learning rules that replace the learning signal of D-RTRL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .downstream import learn_downstream
from .graph import Graph
from .learn import OracleResult, carried, filtered, learn
from .oracle import RecurrenceScope, checked
from .records import Recorded, positions_of, record
from .step import Path


def e_prop_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    kappa: float,
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
        Decay of the filter, at least 0 and below 1.
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
    model, sequences, loss_fn, groups, recurrence_scope
        As in :func:`d_rtrl_oracle`.

    Raises
    ------
    ValueError
        Also when a matrix has another shape, or there is feedback and ``uniform``.

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
        raise ValueError("feedback is defined for the rule without uniform states alone")
    if uniform is not None:
        return learn_downstream(
            model, sequences, loss_fn, uniform=uniform, groups=groups, scope=scope, kappa=kappa
        )
    run = record(model, sequences, loss_fn, groups, scope)
    return learn(_fed_back(run, feedback or {}), filtered(carried, kappa))


def three_factor_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    modulators: Any,
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    recurrence_scope: RecurrenceScope = "diagonal",
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
    run = record(model, sequences, loss_fn, groups, checked(recurrence_scope))
    values = np.asarray(modulators)
    if values.ndim == 0 or len(values) != len(run.steps):
        raise ValueError(f"modulators must have shape ({len(run.steps)}, ...), got {values.shape}")
    steps = tuple(
        replace(
            now,
            l={g: _at_every_state(run.graph, g, value) for g in now.l},
            e={g: np.zeros_like(e) for g, e in now.e.items()},
        )
        for now, value in zip(run.steps, values, strict=True)
    )
    return learn(replace(run, steps=steps), carried)


def _at_every_state(graph: Graph, g: int, value: np.ndarray) -> np.ndarray:
    """``[|g|]``: a value for each position, repeated for its states."""
    shape = graph.groups[g][0].varshape
    if value.ndim not in (0, len(shape)):
        raise ValueError(
            f"a modulator of shape {value.shape} has not the axes of the positions {shape}; which "
            "of them it lacks does not follow from numbers"
        )
    return np.asarray(np.broadcast_to(value, shape).ravel()[positions_of(graph, g)])


def _fed_back(run: Recorded, feedback: Mapping[int, Any]) -> Recorded:
    """The run with ``l`` and ``e`` of the named groups replaced."""

    def through(signals: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        return signals | {g: _mixed(run.graph, g, signals[g], B) for g, B in feedback.items()}

    return replace(
        run, steps=tuple(replace(now, l=through(now.l), e=through(now.e)) for now in run.steps)
    )


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
