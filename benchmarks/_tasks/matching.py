# SPDX-License-Identifier: Apache-2.0
"""Task F, delayed match to sample: how many batches until the answers are right?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import brainstate
import jax
import jax.numpy as jnp
from _shared import learning, networks
from _shared.matching import INPUTS, STEPS, TEST, trials

from _tasks import rules


@dataclass(frozen=True)
class Matching:
    """GIF neurons that learn from new trials until they are right 19 times out of 20.

    ``epochs`` counts rounds of 20 batches, after each of which the accuracy over the round is read.
    """

    units: int = 100
    rate: float = 1e-3
    decay: float = 0.97
    batch_size: int = 64
    epochs: int = 75
    round: int = 20
    least: float = 0.95

    def train(self, rule: str, seed: int, epochs: int | None = None) -> float:
        """Batches until the accuracy over one round was ``least``; infinite when it never was."""
        brainstate.random.seed(seed)
        learn = _learner(self, rule)
        rounds = self.epochs if epochs is None else epochs
        for i, key in enumerate(jax.random.split(jax.random.key(seed), rounds)):
            if float(learn(jax.random.split(key, self.round))) >= self.least:
                return float((i + 1) * self.round)
        return float("inf")


def _learner(task: Matching, rule: str) -> Callable[[jax.Array], jax.Array]:
    """A function of keys that learns from a batch each and returns the fraction answered right."""
    model = networks.adaptive(INPUTS, task.units, 2)
    example = jnp.zeros((task.batch_size, INPUTS), jnp.float32)
    gradient = rules.gradient_of(rule, model, _loss, example, task.decay)
    update = rules.updater(model, rules.optimiser(rule, task.rate))
    asked = jnp.arange(STEPS) >= STEPS - TEST

    def learn(key: jax.Array) -> jax.Array:
        xs, match = trials(key, task.batch_size)
        weights = asked * (STEPS / TEST)
        grads, _, logits = gradient(xs, weights, jnp.broadcast_to(match, (STEPS, len(match))))
        update(grads)
        answers = jnp.einsum("t,tbc->bc", weights, logits).argmax(-1)
        return jnp.mean(answers == match)

    @brainstate.transform.jit
    def learn_all(keys: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(learn, keys).mean()

    return learn_all


def _loss(
    network: brainstate.nn.Module, x: jax.Array, weight: jax.Array, match: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits = network(x)
    return weight * learning.cross_entropy(logits, match).mean(), logits
