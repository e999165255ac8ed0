# SPDX-License-Identifier: Apache-2.0
"""Networks of the tests, where another process can import them."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp

import braintrace

LEAK = 0.8


class Leaky(brainstate.nn.Module):
    """``h' = 0.8 h + x W``, read by ``h' R``; with dropout of the outputs where it is asked for."""

    def __init__(self, inputs: int, outputs: int, units: int = 3, keep: float = 1.0) -> None:
        super().__init__()
        self.units = units
        self.drive = braintrace.nn.Linear(inputs, units, b_init=None)
        self.readout = braintrace.nn.Linear(units, outputs, b_init=None)
        self.dropout = brainstate.nn.Dropout(keep)

    def init_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        """Zeros."""
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.units)))

    def reset_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        """Zeros."""
        self.h.value = jnp.zeros((batch_size, self.units))

    def update(self, x: jax.Array) -> jax.Array:
        """One step."""
        self.h.value = LEAK * self.h.value + self.drive(x)
        return self.dropout(self.readout(self.h.value))


class Feedback(Leaky):
    """The outputs are inputs of the next step: the network cannot be made wider."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs + outputs, outputs)
        self.outputs = outputs

    def init_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        """Zeros."""
        super().init_state(batch_size)
        self.y = brainstate.ShortTermState(jnp.zeros((batch_size, self.outputs)))

    def update(self, x: jax.Array) -> jax.Array:
        """One step."""
        self.y.value = super().update(jnp.concatenate([jax.lax.stop_gradient(self.y.value), x], -1))
        return self.y.value
