# SPDX-License-Identifier: Apache-2.0
"""Task I, evidence accumulation: on which side were there more cues?

As G. Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons",
Nature Communications 11 (2020) 3625, describe it: seven cues of 100 ms, 50 ms apart, each left or
right; a delay; and 150 ms in which the answer is asked for. 40 inputs, ten each: those of a side
fire with 40 Hz during its cues, those of recall with 40 Hz at the end, the others with 10 Hz
always. Here steps are 10 ms, and the delay is 1050 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import brainstate
import jax
import jax.numpy as jnp
from _shared import learning

from _tasks import adaptive, rules
from _tasks.matching import _loss

STEP = 10.0  # ms
CUES, CUE, GAP, DELAY, RECALL = 7, 10, 5, 105, 15  # a number; steps
STEPS = CUES * (CUE + GAP) + DELAY + RECALL
INPUTS, EACH = 40, 10
SHOWN, NOISE = 0.4, 0.1  # spikes per step
LIKELY = 0.7  # that a cue is on the side of its trial


@partial(jax.jit, static_argnames="count")
def trials(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Spikes [225, count, 40] and answers [count], 1 where most cues were on the right."""
    keys = jax.random.split(key, 3)
    side = jax.random.bernoulli(keys[0], 0.5, (count,))
    same = jax.random.bernoulli(keys[1], LIKELY, (CUES, count))
    right = jnp.where(same, side, ~side)
    while_cue = jnp.arange(CUE + GAP) < CUE
    shown = jnp.stack([~right, right], -1)[:, None] * while_cue[None, :, None, None]
    rates = jnp.zeros((STEPS, count, INPUTS // EACH))
    rates = rates.at[: CUES * (CUE + GAP), :, :2].set(SHOWN * shown.reshape(-1, count, 2))
    rates = rates.at[-RECALL:, :, 2].set(SHOWN).at[:, :, 3].set(NOISE)
    spikes = jax.random.bernoulli(keys[2], jnp.repeat(rates, EACH, axis=-1))
    return spikes.astype(jnp.float32), (2 * right.sum(0) > CUES).astype(jnp.int32)


@dataclass(frozen=True)
class Evidence:
    """Neurons, half of them adaptive, that learn from new trials.

    ``epochs`` counts rounds of 20 batches.
    """

    units: int = 100
    rate: float = 5e-3
    decay: float = 0.97
    batch_size: int = 64
    epochs: int = 15
    round: int = 20
    tests: int = 10

    def train(self, rule: str, seed: int, epochs: int | None = None) -> float:
        """The fraction of new trials that are answered right after so many rounds of 20 batches."""
        brainstate.random.seed(seed)
        rounds = self.epochs if epochs is None else epochs
        learn, answer = _programs(self, rule, rounds)
        key, test_key = jax.random.split(jax.random.key(seed))
        for each in jax.random.split(key, rounds):
            learn(jax.random.split(each, self.round)).block_until_ready()
        return float(answer(jax.random.split(test_key, self.tests)))


def _programs(
    task: Evidence, rule: str, rounds: int
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Functions of keys that give the fraction answered right: one learns, one does not."""
    model = adaptive.adaptive(INPUTS, task.units, 2, STEP)
    example = jnp.zeros((task.batch_size, INPUTS), jnp.float32)
    gradient = rules.gradient_of(rule, model, _loss, example, task.decay, kappa=model[1].leak)
    rate = learning.falling(task.rate, rounds * task.round)
    update = rules.updater(model, rules.optimiser(rule, rate))
    weights = (jnp.arange(STEPS) >= STEPS - RECALL) * (STEPS / RECALL)

    def right(logits: jax.Array, answers: jax.Array) -> jax.Array:
        return jnp.mean(jnp.einsum("t,tbc->bc", weights, logits).argmax(-1) == answers)

    def learn(key: jax.Array) -> jax.Array:
        xs, answers = trials(key, task.batch_size)
        same = jnp.broadcast_to(answers, (STEPS, len(answers)))
        grads, _, logits = gradient(xs, weights, same)
        update(grads)
        return right(logits, answers)

    def answer(key: jax.Array) -> jax.Array:
        xs, answers = trials(key, task.batch_size)
        brainstate.nn.reset_all_states(model, batch_size=task.batch_size)
        return right(brainstate.transform.for_loop(model, xs), answers)

    def over(one: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return brainstate.transform.jit(
            lambda keys: brainstate.transform.for_loop(one, keys).mean()
        )

    return over(learn), over(answer)
