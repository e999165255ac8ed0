# SPDX-License-Identifier: Apache-2.0
"""UORO with given signs, so that it is no longer random."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .filters import Traced, TracedStates, traced_states
from .learn import OracleResult
from .paths import product
from .step import Path


def uoro_oracle(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    signs: Mapping[int, Any],
    *,
    groups: Sequence[Sequence[Path]] | None = None,
    uniform: Iterable[Path] | None = None,
) -> OracleResult:
    r"""UORO with given signs (Tallec & Ollivier, 2017, arXiv 1702.05043).

    .. math::

        s^t &= \rho_0 D^t s^{t-1} + \rho_1 \nu^t \\
        \theta_r^t &= \theta_r^{t-1} / \rho_0 + {\nu^t}^T F_r^t \, \mathrm{d}Y_r^t / \rho_1 \\
        M_r^t &= s^t \otimes \theta_r^t

    with the whole ``D`` of :func:`rtrl_oracle`, and each :math:`\rho` such that both factors that
    it multiplies and divides are equally large (0, and no quotient, where one is zero). Each
    position has a product of its own, or each example where steps mix positions. Other arguments,
    results and errors are those of :func:`d_rtrl_oracle`; ``influences`` and ``steps`` are empty.

    Parameters
    ----------
    signs
        By number of the group ``[T, S, *V]``: the signs of its ``S`` states at all positions, and
        behind these of the filters of what is above.
    uniform
        As in :func:`d_rtrl_oracle`. Each value that drives such a state has a filter with its leak,
        one more state of the group below. What lies in the region between has no noise.
    model, sequences, loss_fn, groups
        As in :func:`d_rtrl_oracle`.

    Raises
    ------
    ValueError
        Also when signs are missing for a group, or as for the feedback of :func:`e_prop_oracle`.

    Examples
    --------
    A layer of one unit, whose estimate is exact for any signs:

    >>> import brainstate, braintrace, jax, numpy as np
    >>> from braintrace.testing import assert_tree_close, bptt, uoro_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 1, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (1, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = uoro_oracle(cell, (xs,), loss, {0: -np.ones((1, 1, 1))})
    >>> assert_tree_close(result.grads, bptt(cell, (xs,), loss)[1], rtol=1e-5)
    """
    traced = traced_states(model, sequences, loss_fn, uniform=uniform, groups=groups, scope="full")

    def drawn(states: TracedStates) -> np.ndarray:
        shape = (len(states.steps), sum(states.counts), *states.shape)
        found = np.asarray(signs[states.number]) if states.number in signs else np.zeros(0)
        if found.shape != shape:
            raise ValueError(f"signs[{states.number}] must have shape {shape}, got {found.shape}")
        return found

    return traced.result(rank_one(traced, drawn))


def rank_one(traced: Traced, signs: Callable[[TracedStates], Any]) -> np.ndarray:
    """UORO's gradient; ``signs(states)``: ``[T, S, *positions]``."""
    grad = traced.rest
    for states in traced.homes:
        cells = _cells(states)
        drawn, first = np.asarray(signs(states), float), states.steps[0]
        s = np.zeros(len(first.K))
        theta = {r: np.zeros((len(cells), fresh.shape[1])) for r, fresh in first.increments.items()}
        for t, now in enumerate(states.steps):
            grad = grad + sum(product((now.e * s) @ cells.T, rows) for rows in theta.values())
            nu, moved = states.laid(drawn[t]), product(now.K, s)
            fresh = {r: product(cells * nu, rows) for r, rows in now.increments.items()}
            a, a_theta = _balance(cells, theta, moved)
            b, b_theta = _balance(cells, fresh, nu)
            s = (a @ cells) * moved + (b @ cells) * nu
            theta = {
                r: a_theta[:, None] * rows + b_theta[:, None] * fresh[r]
                for r, rows in theta.items()
            }
            grad = grad + sum(product((now.l * s) @ cells.T, rows) for rows in theta.values())
    return grad


def _cells(states: TracedStates) -> np.ndarray:
    """``[cells, n]``: which entries have one product: of a position, or of an example.

    That is so where a step mixes the positions of an example.
    """
    position = states.positions()
    mixed = any(np.any(now.K[position[:, None] != position]) for now in states.steps)
    inner = math.prod(states.shape[1:]) if len(states.shape) > 1 else math.prod(states.shape)
    cell = position // inner if mixed else position
    return (np.arange(cell.max(initial=-1) + 1)[:, None] == cell).astype(float)


def _balance(
    cells: np.ndarray, theta: dict[int, np.ndarray], s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By cell, what makes both factors equally large; 0 where one is zero."""
    of_theta = np.sqrt(sum(np.sum(rows**2, axis=1) for rows in theta.values()))
    of_s = np.sqrt(cells @ s**2)
    both = (of_theta > 0) & (of_s > 0)
    rho = np.sqrt(np.where(both, of_theta, 1.0) / np.where(both, of_s, 1.0))
    return np.where(both, rho, 0.0), np.where(both, 1 / rho, 0.0)
