# SPDX-License-Identifier: Apache-2.0
"""What trainings have in common: losses, optimisers, the order of examples, a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .progress import Progress


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per example, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def adam(rate: Any) -> optax.GradientTransformation:
    """Adam; gradients of norm 1 at most."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def falling(rate: float, updates: int) -> Any:
    """A rate that falls to zero along a cosine."""
    return optax.cosine_decay_schedule(rate, max(1, updates))


def batches(key: jax.Array, count: int, size: int) -> jax.Array:
    """A random order in full batches, [count // size, size]."""
    return jax.random.permutation(key, count)[: count // size * size].reshape(-1, size)


def epochs(
    label: str, learn: Callable[[jax.Array, jax.Array], jax.Array], count: int, size: int, num: int
) -> list[float]:
    """Learn from ``count`` examples ``num`` times over; the mean losses of the epochs.

    ``learn(indices [size], key)`` learns from one batch and returns its loss.
    """

    @brainstate.transform.jit
    def epoch(key: jax.Array) -> jax.Array:
        order = batches(key, count, size)
        keys = jax.random.split(key, len(order))
        return brainstate.transform.for_loop(learn, order, keys).mean()

    return rounds(label, epoch, num)


def rounds(
    label: str, learn: Callable[[jax.Array], Any], num: int, what: str = "loss"
) -> list[float]:
    """What ``learn(key)`` returns, ``num`` times, with a progress bar."""
    found = []
    with Progress(label, num) as progress:
        for key in jax.random.split(brainstate.random.split_key(), num):
            found.append(float(learn(key)))
            progress.advance(f"{what} {found[-1]:.3f}")
    return found


def outputs(
    model: brainstate.nn.Module,
    xs: jax.Array,
    batch_size: int,
    look: Callable[[], Any] | None = None,
) -> Any:
    """What a model returns at every step of sequences [T, B, ...], from zero states on.

    With ``look``, what that returns after every step comes second.
    """
    brainstate.nn.init_all_states(model, batch_size=batch_size)

    @brainstate.transform.jit
    def run(xs: jax.Array) -> Any:
        step = model if look is None else (lambda x: (model(x), look()))
        return brainstate.transform.for_loop(step, xs)

    return jax.tree.map(np.asarray, run(jnp.asarray(xs)))
