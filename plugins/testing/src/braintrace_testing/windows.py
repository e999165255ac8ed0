# SPDX-License-Identifier: Apache-2.0
"""Windows: reverse mode inside, and outside what a learning rule, or a prediction, says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from .learn import OracleResult
from .program import is_float, real_entries
from .step import Path, Step, entry, num_steps, trace_step

Predict = Callable[[int, dict[Path, Any]], Mapping[Path, Any]]


def window_oracle(
    rule: Callable[[Any, tuple[Any, ...], Callable[..., Any]], OracleResult],
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    window: int,
) -> OracleResult:
    r"""A learning rule between windows of steps, reverse mode within them.

    For each window, from :math:`t_0` to :math:`t_1`, with the loss
    :math:`L = \sum_{t_0 < t \le t_1} L^t`, the gradient has

    .. math::

        \left. \frac{\partial L}{\partial \theta} \right|_{h^{t_0}}
            + \sum_{r,g} \frac{\mathrm{d} L}{\mathrm{d} h_g^{t_0}} \, M_{r,g}^{t_0}

    where the first term is that of the plain model from the states at :math:`t_0`, held constant;
    the derivative in the old hidden values of a group is a total one (those of other groups are
    held); and ``M`` is the rule's influence, zero at the beginning. One window over everything is
    :func:`bptt`, whatever the rule.

    Parameters
    ----------
    rule
        An oracle, with what it needs beyond the first three arguments bound:
        ``functools.partial(pp_prop_oracle, decay_x=0.9)``. Its influences are taken, not its
        learning signals (a feedback or a modulator).
    model, sequences, loss_fn
        As in :func:`d_rtrl_oracle`.
    window
        Steps of a window, at least 1; the last one may be shorter.

    Returns
    -------
    OracleResult
        That of the rule, with other ``grads``.

    Raises
    ------
    ValueError
        Also when ``window`` is less than 1.

    Examples
    --------
    One window over the whole sequence is BPTT:

    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle, window_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = window_oracle(d_rtrl_oracle, cell, (xs,), loss, window=2)
    >>> assert_tree_close(result.grads, bptt(cell, (xs,), loss)[1], rtol=1e-5)
    """
    result = rule(model, sequences, loss_fn)
    run = _Windows(trace_step(model, sequences, loss_fn), sequences, window)
    total: Any = None
    values = list(run.step.values)
    for start in run.starts:
        found = run.gradient(start, values)
        total, values = _sum(total, found.grads), found.values
        if start:
            past = jax.tree.map(lambda leaf, t=start: leaf[t - 1], result.influences)
            for (_, g), matrices in past.items():
                before = [_flat(found.before[path]) for path in result.groups[g]]
                signal = np.concatenate([real_entries(jnp.conj(leaf)) for leaf in before])
                terms = jax.tree.map(lambda m, s=signal: np.tensordot(s, m, axes=1), matrices)
                total = _sum(total, terms)
    return replace(result, grads=total)


def dni_reference(
    model: Any,
    sequences: tuple[Any, ...],
    loss_fn: Callable[..., Any],
    window: int,
    predict: Predict,
) -> tuple[jax.Array, dict[Path, Any]]:
    r"""Windows that end in a predicted gradient (Jaderberg et al., 2016, arXiv 1608.05343).

    For each window, the gradient has

    .. math::

        \left. \frac{\partial}{\partial \theta} \right|_{h^{t_0}} \Bigl[ \sum_{t_0 < t \le t_1} L^t
            + \bigl\langle \mathrm{const}(\mathrm{predict}(h^{t_1})), h^{t_1} \bigr\rangle \Bigr]

    with the states at :math:`t_0` held constant. There are no traces. If ``predict`` returns the
    true gradient of all later losses, the sum is that of :func:`bptt`.

    Parameters
    ----------
    model, sequences, loss_fn
        As in :func:`d_rtrl_oracle`.
    window
        Steps of a window, at least 1; the last one may be shorter.
    predict
        ``predict(steps_done, hidden values by path) -> cotangents by path``, at the end of every
        window, the last one included; a path that is left out has none.

    Returns
    -------
    losses, grads
        As in :func:`bptt`: the losses without the predictions.

    Raises
    ------
    ValueError
        When ``window`` is less than 1, the sequences have no common length or the loss is no
        scalar.

    Examples
    --------
    Without a prediction it is BPTT cut at the borders of windows:

    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import dni_reference
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (3, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> losses, grads = dni_reference(cell, (xs,), loss, 2, lambda steps, hidden: {})
    >>> losses.shape
    (3,)
    """
    run = _Windows(trace_step(model, sequences, loss_fn), sequences, window)
    losses, values = [], list(run.step.values)
    total: Any = None
    for start in run.starts:
        end = run.hidden(run.gradient(start, values).values)
        future = predict(start + len(run.inputs(start)), end)
        found = run.gradient(start, values, future)
        losses.append(found.losses)
        total, values = _sum(total, found.grads), found.values
    return jnp.concatenate(losses), total


@dataclass(frozen=True)
class _Window:
    """What a window gives.

    ``grads`` and ``before`` are the derivatives of the sum of its losses in the parameters and in
    the hidden values at its beginning, ``values`` those of the states at its end.
    """

    losses: jax.Array
    grads: dict[Path, Any]
    before: dict[Path, Any]
    values: list[Any]


class _Windows:
    """The windows of a sequence, and reverse mode in each of them."""

    def __init__(self, step: Step, sequences: tuple[Any, ...], window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.step, self.sequences, self.length = step, sequences, window
        self._gradient = jax.jit(jax.grad(self._loss, argnums=(0, 1), has_aux=True))

    @property
    def starts(self) -> range:
        """The first step of each window."""
        return range(0, num_steps(self.sequences), self.length)

    def inputs(self, start: int) -> list[tuple[Any, ...]]:
        """The entries of the sequences, step by step."""
        stop = min(start + self.length, num_steps(self.sequences))
        return [entry(self.sequences, t) for t in range(start, stop)]

    def hidden(self, values: list[Any]) -> dict[Path, Any]:
        """The values of the hidden states, by path."""
        return {
            path: value
            for path, state, value in zip(self.step.paths, self.step.states, values, strict=True)
            if path is not None
            and isinstance(state, brainstate.HiddenState)
            and is_float(jax.tree.leaves(value)[0])
        }

    def gradient(
        self, start: int, values: list[Any], future: Mapping[Path, Any] | None = None
    ) -> _Window:
        """A window from these values of the states.

        ``future``: constant cotangents of the hidden values at its end. The product of the two is
        part of what is differentiated, but not of the losses.
        """
        hidden = self.hidden(values)
        later = jax.tree.map(jnp.zeros_like, hidden) | dict(future or {})
        (grads, before), (losses, after) = self._gradient(
            self.step.parameters, hidden, values, self.inputs(start), later
        )
        return _Window(losses, grads, before, after)

    def _loss(
        self,
        parameters: dict[Path, Any],
        hidden: dict[Path, Any],
        values: list[Any],
        inputs: list[tuple[Any, ...]],
        future: dict[Path, Any],
    ) -> tuple[jax.Array, tuple[jax.Array, list[Any]]]:
        values = self.step.with_parameters(values, {**parameters, **hidden})
        losses = []
        for now in inputs:
            values, (_, loss) = self.step(values, now)
            losses.append(loss)
        end = self.hidden(list(values))
        later = [jnp.sum(_flat(future[path]) * _flat(value)).real for path, value in end.items()]
        return jnp.stack([*losses, *later]).sum(), (jnp.stack(losses), list(values))


def _flat(value: Any) -> jax.Array:
    """The entries of a hidden value, without its unit."""
    return jnp.ravel(jax.tree.leaves(value)[0])


def _sum(total: Any, terms: Any) -> Any:
    return terms if total is None else jax.tree.map(jnp.add, total, terms)
