# SPDX-License-Identifier: Apache-2.0
"""Task E and the endless stream: predict the next character; states and traces go on and on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning, networks, text

from _tasks import rules


@dataclass(frozen=True)
class Prediction:
    """A GRU that reads parallel streams and changes its weights every so many characters."""

    units: int = 128
    rate: float = 4e-3
    decay: float = 0.2
    epochs: int = 6
    num_streams: int = 16
    update_every: int = 32

    def train(self, rule: str, seed: int, epochs: int | None = None) -> float:
        """Bits per held-out character after ``epochs`` passes (of the task, if ``None``)."""
        return _train(self, rule, seed, self.epochs if epochs is None else epochs)


Learn = Callable[[jax.Array, jax.Array], jax.Array]


def learner(
    task: Prediction, size: int, rule: str, rate: Any
) -> tuple[brainstate.nn.Module, Learn]:
    """A network, and a function that learns from characters and what came next.

    The function takes both as [updates, update_every, num_streams] and returns mean losses in nats
    per update.
    """
    model = networks.gated(size, task.units, size)
    example = jnp.zeros((task.num_streams, size), jnp.float32)
    loss = partial(_loss, size)
    gradient = rules.gradient_of(rule, model, loss, example, task.decay, go_on=True)
    update = rules.updater(model, rules.optimiser(rule, rate))

    def learn(now: jax.Array, after: jax.Array) -> jax.Array:
        grads, losses, _ = gradient(now, after)
        update(grads)
        return losses.mean()

    return model, brainstate.transform.jit(partial(brainstate.transform.for_loop, learn))


def _loss(
    size: int, network: brainstate.nn.Module, now: jax.Array, after: jax.Array
) -> tuple[jax.Array, None]:
    logits = network(jax.nn.one_hot(now, size, dtype=jnp.float32))
    return learning.cross_entropy(logits, after).mean(), None


def _train(task: Prediction, rule: str, seed: int, epochs: int) -> float:
    brainstate.random.seed(seed)
    found = text.load()
    now, after = map(jnp.asarray, text.streams(found.train, task.num_streams, task.update_every))
    rate = learning.falling(task.rate, epochs * len(now))
    model, learn = learner(task, found.size, rule, rate)
    for _ in range(epochs):
        learn(now, after).block_until_ready()
    return _bits(task, model, found)


def _bits(task: Prediction, model: brainstate.nn.Module, found: text.Text) -> float:
    """Bits per held-out character; the network starts from zero in each stream."""
    brainstate.nn.init_all_states(model, batch_size=task.num_streams)
    now, after = (
        a.reshape(-1, task.num_streams)
        for a in text.streams(found.test, task.num_streams, task.update_every)
    )

    @brainstate.transform.jit
    def losses(now: jax.Array, after: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(
            lambda *step: _loss(found.size, model, *step)[0], now, after
        )

    return float(np.mean(losses(now, after))) / math.log(2.0)
