# SPDX-License-Identifier: Apache-2.0
"""Tasks A to D and the negative control: label sequences, learning from a training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning
from _shared.problem import Examples, Split

from _tasks import rules


@dataclass(frozen=True)
class Classification:
    """A network, sequences to label, and how to train.

    ``build()`` makes the network; ``load()`` the examples; ``encode(key, inputs [B, ...])`` a
    sequence [T, B, in]. ``rate`` is Adam's at the start; it falls to zero. ``decay`` is pp_prop's.
    """

    build: Callable[[], brainstate.nn.Module]
    load: Callable[[], Split]
    encode: Callable[[jax.Array, jax.Array], jax.Array]
    rate: float
    decay: float
    epochs: int = 40
    batch_size: int = 64

    def train(self, rule: str, seed: int, epochs: int | None = None) -> float:
        """Held-out accuracy after ``epochs`` passes (of the task, if ``None``)."""
        return _train(self, rule, seed, self.epochs if epochs is None else epochs)


def _train(task: Classification, rule: str, seed: int, epochs: int) -> float:
    brainstate.random.seed(seed)
    model, split = task.build(), task.load()
    key, test_key = jax.random.split(jax.random.key(seed))
    learn = _learner(task, model, split.train, rule, epochs)

    @brainstate.transform.jit
    def epoch(batches: jax.Array, keys: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(learn, batches, keys).mean()

    for each in jax.random.split(key, epochs):
        batches = learning.batches(each, len(split.train.labels), task.batch_size)
        epoch(batches, jax.random.split(each, len(batches))).block_until_ready()
    return _accuracy(model, task, split.test, test_key)


def _learner(
    task: Classification, model: brainstate.nn.Module, train: Examples, rule: str, epochs: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A function that learns from one batch (indices [B]) and returns its mean loss."""
    inputs, weights, labels = map(jnp.asarray, (train.inputs, train.weights, train.labels))
    first = task.encode(jax.random.key(0), inputs[: task.batch_size])[0]
    gradient = rules.gradient_of(rule, model, _loss, first, task.decay)
    updates = epochs * (len(labels) // task.batch_size)
    update = rules.updater(model, learning.adam(learning.falling(task.rate, updates)))

    def learn(batch: jax.Array, key: jax.Array) -> jax.Array:
        xs, counts = task.encode(key, inputs[batch]), weights[batch].T
        same = jnp.broadcast_to(labels[batch], counts.shape)
        grads, losses, _ = gradient(xs, counts, same)
        update(grads)
        return losses.mean()

    return learn


def _loss(
    network: brainstate.nn.Module, x: jax.Array, weights: jax.Array, labels: jax.Array
) -> tuple[jax.Array, None]:
    return jnp.mean(weights * learning.cross_entropy(network(x), labels)), None


def _accuracy(
    model: brainstate.nn.Module, task: Classification, test: Examples, key: jax.Array
) -> float:
    """The fraction of held-out sequences whose label has the largest weighted mean logit."""
    xs = task.encode(key, jnp.asarray(test.inputs))
    found = learning.outputs(model, xs, len(test.labels))
    answers = np.einsum("nt,tnc->nc", test.weights, found).argmax(-1)
    return float(np.mean(answers == test.labels))
