# SPDX-License-Identifier: Apache-2.0
"""Spiking neurons with any connections, and a readout that leaks; nothing here is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

#: A connection: [B, ...] to [B, ...].
Map = Callable[[jax.Array], jax.Array]


@jax.custom_jvp
def spike(distance: jax.Array) -> jax.Array:
    """1 where the membrane is above threshold, else 0."""
    return (distance > 0).astype(distance.dtype)


@spike.defjvp
def _surrogate(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The step has no useful derivative: use that of a fast sigmoid instead."""
    (distance,), (change,) = primals, tangents
    return spike(distance), change / (1.0 + 5.0 * jnp.abs(distance)) ** 2


class Layer(brainstate.nn.Module):
    """Hidden states, named in ``kept``, that start at zero: [*shape] or [B, *shape]."""

    kept: tuple[str, ...]

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def init_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        for name in self.kept:
            setattr(self, name, brainstate.HiddenState(self._zeros(batch_size)))

    def reset_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        for name in self.kept:
            getattr(self, name).value = self._zeros(batch_size)

    def _zeros(self, batch_size: int | None) -> jax.Array:
        return jnp.zeros(self.shape if batch_size is None else (batch_size, *self.shape))


class LIF(Layer):
    """Leaky integrate-and-fire neurons that drive one another.

    Takes input [B, *in] through ``feedforward`` and returns spikes [B, *shape], which come back
    through ``recurrent``. A neuron that fires loses the threshold (1) from its membrane ``V`` at
    the next step.
    """

    kept: tuple[str, ...] = ("V",)
    V: Any

    def __init__(
        self, shape: tuple[int, ...], feedforward: Map, recurrent: Map, leak: float = 0.9
    ) -> None:
        super().__init__(shape)
        self.feedforward, self.recurrent, self.leak = feedforward, recurrent, leak

    def spikes(self) -> jax.Array:
        return spike(self.V.value - 1.0)

    def current(self, x: jax.Array, fired: jax.Array) -> jax.Array:
        return self.feedforward(x) + self.recurrent(fired)

    def update(self, x: jax.Array) -> jax.Array:
        fired = self.spikes()
        self.V.value = self.leak * self.V.value - fired + self.current(x, fired)
        return self.spikes()


class GIF(LIF):
    """Generalised integrate-and-fire neurons: every spike starts a slow current ``I``.

    The current's time constants lie, evenly on a logarithmic scale, between ``fastest`` and
    ``slowest`` steps; in every second neuron it excites, in the others it inhibits. S. Mihalas and
    E. Niebur, "A generalized linear integrate-and-fire neural model produces diverse spiking
    behaviors", Neural Computation 21 (2009) 704-718.
    """

    kept = ("V", "I")
    I: Any  # noqa: E741  a current

    def __init__(
        self,
        shape: tuple[int, ...],
        feedforward: Map,
        recurrent: Map,
        leak: float = 0.9,
        fastest: float = 10.0,
        slowest: float = 300.0,
        jump: float = 0.03,
    ) -> None:
        super().__init__(shape, feedforward, recurrent, leak)
        (num_units,) = shape
        constants = np.geomspace(fastest, slowest, num_units)
        self.fade = jnp.asarray(np.exp(-1.0 / constants), jnp.float32)
        self.jump = jnp.asarray(jump * np.where(np.arange(num_units) % 2, 1.0, -1.0), jnp.float32)

    def update(self, x: jax.Array) -> jax.Array:
        fired = self.spikes()
        self.I.value = self.fade * self.I.value + self.jump * fired
        current = self.current(x, fired) + self.I.value
        self.V.value = self.leak * self.V.value - fired + current
        return self.spikes()


class LeakyReadout(Layer):
    """Adds what a map makes of spikes [B, in] up to one leaky value per class, [B, num_out]."""

    kept = ("U",)
    U: Any

    def __init__(self, num_out: int, linear: Map, leak: float = 0.9) -> None:
        super().__init__((num_out,))
        self.linear, self.leak = linear, leak

    def update(self, spikes: jax.Array) -> jax.Array:
        self.U.value = self.leak * self.U.value + self.linear(spikes)
        return self.U.value
