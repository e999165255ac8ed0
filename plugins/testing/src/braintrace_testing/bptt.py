# SPDX-License-Identifier: Apache-2.0
"""Backpropagation through time of a model, whole or truncated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .step import Path, entry, num_steps, trace_step


def bptt(
    model: Any, sequences: tuple[Any, ...], loss_fn: Callable[..., Any]
) -> tuple[jax.Array, dict[Path, Any]]:
    r"""Gradient of :math:`\sum_t L^t` by ``jax.grad`` of the loop over the steps.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states, which are left as they are.
    sequences
        Arrays (or pytrees of arrays) ``[T, ...]``: the model's input, then what the loss takes.
    loss_fn
        ``loss_fn(out, *rest) -> scalar``.

    Returns
    -------
    losses
        ``[T]``.
    grads
        For every ``ParamState``, by path, a pytree like its value.

    Raises
    ------
    ValueError
        When the sequences have no common length or the loss is not a scalar.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import bptt
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (3, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> losses, grads = bptt(cell, (xs,), loss)
    >>> losses.shape, grads[("W_x", "weight")]["weight"].shape
    ((3,), (2, 2))
    """
    step = trace_step(model, sequences, loss_fn)

    def scanned(values: Any) -> jax.Array:
        def one(values: Any, inputs: tuple[Any, ...]) -> tuple[Any, jax.Array]:
            values, (_, loss) = step(values, inputs)
            return list(values), loss

        return jax.lax.scan(one, values, sequences)[1]

    def unrolled(values: Any) -> jax.Array:
        losses = []
        for t in range(num_steps(sequences)):
            values, (_, loss) = step(values, entry(sequences, t))
            losses.append(loss)
        return jnp.stack(losses)

    def total(parameters: dict[Path, Any]) -> tuple[jax.Array, jax.Array]:
        values = step.with_parameters(step.values, parameters)
        try:
            losses = scanned(values)
        except TypeError:  # a state changes its type
            losses = unrolled(values)
        return losses.sum(), losses

    num_steps(sequences)
    grads, losses = jax.jit(jax.grad(total, has_aux=True))(step.parameters)
    return losses, grads


def truncated_bptt(
    model: Any, sequences: tuple[Any, ...], loss_fn: Callable[..., Any], steps: int
) -> tuple[jax.Array, dict[Path, Any]]:
    r"""Gradient of :math:`\sum_t L^t`, each term through its last ``steps`` steps only.

    :math:`L^t` is differentiated with the states entering step ``t - steps + 1`` held constant;
    ``steps=1`` is the current step alone. Errors are those of :func:`bptt`.

    Parameters
    ----------
    model, sequences, loss_fn
        As in :func:`bptt`.
    steps
        How many steps back each loss is followed, at least 1.

    Returns
    -------
    losses, grads
        As in :func:`bptt`.

    Raises
    ------
    ValueError
        Also when ``steps`` is less than 1.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import assert_tree_close, bptt, truncated_bptt
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> _, grads = truncated_bptt(cell, (xs,), loss, steps=2)
    >>> assert_tree_close(grads, bptt(cell, (xs,), loss)[1], rtol=1e-5)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    step = trace_step(model, sequences, loss_fn)

    @jax.jit
    @jax.value_and_grad
    def last_loss(parameters: dict[Path, Any], values: Any, window: list[Any]) -> jax.Array:
        values = step.with_parameters(values, parameters)
        for inputs in window:
            values, (_, loss) = step(values, inputs)
        return loss

    inputs = [entry(sequences, t) for t in range(num_steps(sequences))]
    entering = [list(step.values)]
    for now in inputs[:-1]:
        entering.append(step(entering[-1], now)[0])
    losses, grads = [], []
    for t in range(len(inputs)):
        start = max(0, t - steps + 1)
        loss, grad = last_loss(step.parameters, entering[start], inputs[start : t + 1])
        losses.append(loss)
        grads.append(grad)
    return jnp.stack(losses), jax.tree.map(lambda *terms: sum(terms), *grads)
