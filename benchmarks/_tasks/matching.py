# SPDX-License-Identifier: Apache-2.0
"""Task F, delayed match to sample: was the second stimulus the first one again?

Steps are 10 ms: 1 of fixation, 50 of a sample, 100 of delay, 50 of a test. A stimulus is one of
eight directions; 100 input neurons, each with a direction of its own, fire Poisson spikes with a
rate that falls with the distance. The answer is asked for at every step of the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from _tasks import networks, rules

INPUTS = 100
DIRECTIONS = 8
FIXATION, SAMPLE, DELAY, TEST = 1, 50, 100, 50
STEPS = FIXATION + SAMPLE + DELAY + TEST
HIGHEST = 0.4  # spikes per step of a neuron whose direction is shown
BACKGROUND = 0.01  # spikes per step of every neuron
WIDTH = 3.0


def trials(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Spikes [201, count, 100] and answers [count], 1 for a match."""
    keys = jax.random.split(key, 4)
    match = jax.random.bernoulli(keys[0], 0.5, (count,)).astype(jnp.int32)
    first = jax.random.randint(keys[1], (count,), 0, DIRECTIONS)
    other = first + jax.random.randint(keys[2], (count,), 1, DIRECTIONS)
    second = jnp.where(match, first, other)
    silence = jnp.full((count, INPUTS), BACKGROUND)
    periods = (silence, _rates(first), silence, _rates(second))
    lengths = np.array([FIXATION, SAMPLE, DELAY, TEST])
    rates = jnp.repeat(jnp.stack(periods), lengths, axis=0, total_repeat_length=STEPS)
    return jax.random.bernoulli(keys[3], rates).astype(jnp.float32), match


def _rates(direction: jax.Array) -> jax.Array:
    """Spikes per step [B, 100] while a direction [B] is shown."""
    own = jnp.linspace(0.0, 2 * jnp.pi, INPUTS, endpoint=False)
    angle = own - 2 * jnp.pi / DIRECTIONS * direction[:, None]
    return BACKGROUND + HIGHEST * jnp.exp(WIDTH * (jnp.cos(angle) - 1.0))


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
    update = rules.updater(model, rules.adam(task.rate))
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
    return weight * rules.cross_entropy(logits, match).mean(), logits
