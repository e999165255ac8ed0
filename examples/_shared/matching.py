# SPDX-License-Identifier: Apache-2.0
"""Delayed match to sample: was the second stimulus the first one again?

Steps are 10 ms: 1 of fixation, 50 of a sample, 100 of delay, 50 of a test. A stimulus is one of
eight directions; 100 input neurons, each with a direction of its own, fire Poisson spikes with a
rate that falls with the distance. The answer is asked for at every step of the test.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

INPUTS = 100
DIRECTIONS = 8
FIXATION, SAMPLE, DELAY, TEST = 1, 50, 100, 50
STEPS = FIXATION + SAMPLE + DELAY + TEST
HIGHEST = 0.4  # spikes per step of a neuron whose direction is shown
BACKGROUND = 0.01  # spikes per step of every neuron
WIDTH = 3.0


@partial(jax.jit, static_argnames="count")
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
