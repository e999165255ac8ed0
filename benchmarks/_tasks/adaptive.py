# SPDX-License-Identifier: Apache-2.0
"""Spiking neurons with an adaptive threshold, as in the evidence accumulation of e-prop's paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared.networks import dense, readout
from _shared.neurons import Layer

THRESHOLD = 0.6


@jax.custom_jvp
def spike(distance: jax.Array) -> jax.Array:
    """1 where the membrane is above threshold, else 0; ``distance`` in units of the threshold."""
    return (distance > 0).astype(distance.dtype)


@spike.defjvp
def _triangle(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (distance,), (change,) = primals, tangents
    return spike(distance), 0.3 * jnp.maximum(0.0, 1.0 - jnp.abs(distance)) * change


class Adaptive(Layer):
    """Leaky neurons, recurrent; each spike raises the threshold of every second one for a time.

    ::

        V' = leak V + W x + R z - threshold z,    a' = fade a + z
        z  = 1 where V > threshold + raised a

    ``raised`` is zero in the other half. The reset is detached.
    """

    kept = ("V", "a")
    V: Any
    a: Any

    def __init__(
        self, num_in: int, num_units: int, leak: float, fade: float, raised: float
    ) -> None:
        super().__init__((num_units,))
        self.feedforward, self.recurrent = dense(num_in, num_units)
        self.leak, self.fade = leak, fade
        self.raised = jnp.asarray(np.where(np.arange(num_units) % 2, raised, 0.0), jnp.float32)

    def spikes(self) -> jax.Array:
        above = self.V.value - THRESHOLD - self.raised * self.a.value
        return spike(above / THRESHOLD)

    def update(self, x: jax.Array) -> jax.Array:
        fired = self.spikes()
        reset = THRESHOLD * jax.lax.stop_gradient(fired)
        current = self.feedforward(x) + self.recurrent(fired)
        self.a.value = self.fade * self.a.value + fired
        self.V.value = self.leak * self.V.value - reset + current
        return self.spikes()


def adaptive(
    num_in: int, num_units: int, num_out: int, milliseconds: float, lasting: float = 2000.0
) -> brainstate.nn.Module:
    """Such neurons with a leaky readout, for steps of some milliseconds.

    Membranes and readout have 20 ms, thresholds ``lasting``.
    """
    leak, fade = float(np.exp(-milliseconds / 20.0)), float(np.exp(-milliseconds / lasting))
    raised = 1.7 * (1.0 - fade) / (1.0 - leak)
    above = readout(num_units, num_out)
    above.leak = leak
    return brainstate.nn.Sequential(Adaptive(num_in, num_units, leak, fade, raised), above)
