# SPDX-License-Identifier: Apache-2.0
"""The networks: ordinary modules whose trainable products come from ``braintrace.nn``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace

# --- spiking ------------------------------------------------------------------------------------


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
    """Hidden states, named in ``kept``, that start at zero: [units] or [B, units]."""

    kept: tuple[str, ...]

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.num_units = num_units

    def init_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        for name in self.kept:
            setattr(self, name, brainstate.HiddenState(self._zeros(batch_size)))

    def reset_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        for name in self.kept:
            getattr(self, name).value = self._zeros(batch_size)

    def _zeros(self, batch_size: int | None) -> jax.Array:
        return jnp.zeros((self.num_units,) if batch_size is None else (batch_size, self.num_units))


class LIF(Layer):
    """Leaky integrate-and-fire neurons that drive one another.

    Takes input [B, num_in] and returns spikes [B, num_units]. A neuron that fires loses the
    threshold (1) from its membrane ``V`` at the next step.
    """

    kept: tuple[str, ...] = ("V",)
    V: Any

    def __init__(self, num_in: int, num_units: int, leak: float = 0.9) -> None:
        super().__init__(num_units)
        self.leak = leak
        scale = brainstate.nn.init.LecunNormal()
        self.feedforward = braintrace.nn.Linear(num_in, num_units, w_init=scale)
        self.recurrent = braintrace.nn.Linear(num_units, num_units, w_init=scale, b_init=None)

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
        num_in: int,
        num_units: int,
        leak: float = 0.9,
        fastest: float = 10.0,
        slowest: float = 300.0,
        jump: float = 0.03,
    ) -> None:
        super().__init__(num_in, num_units, leak)
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
    """Adds spikes [B, num_in] up to one leaky value per class, [B, num_out]."""

    kept = ("U",)
    U: Any

    def __init__(self, num_in: int, num_out: int, leak: float = 0.9) -> None:
        super().__init__(num_out)
        self.leak = leak
        self.linear = braintrace.nn.Linear(num_in, num_out)

    def update(self, spikes: jax.Array) -> jax.Array:
        self.U.value = self.leak * self.U.value + self.linear(spikes)
        return self.U.value


def spiking(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Module:
    """LIF neurons with a leaky readout."""
    return brainstate.nn.Sequential(LIF(num_in, num_units), LeakyReadout(num_units, num_out))


def adaptive(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Module:
    """GIF neurons with a leaky readout."""
    return brainstate.nn.Sequential(GIF(num_in, num_units), LeakyReadout(num_units, num_out))


# --- of rates -----------------------------------------------------------------------------------


def gated(
    num_in: int, num_units: int, num_out: int, gate_bias: float = 0.0
) -> brainstate.nn.Module:
    """A GRU with a linear readout; below 0, ``gate_bias`` starts it with a longer memory."""
    cell = braintrace.nn.GRUCell(num_in, num_units)
    gate = cell.Wz.weight
    gate.value = {**gate.value, "bias": jnp.full_like(gate.value["bias"], gate_bias)}
    return brainstate.nn.Sequential(cell, braintrace.nn.Linear(num_units, num_out))


class Modes(brainstate.nn.Module):
    """A linear recurrent unit that hands out its modes: [B, 2 num_units + num_in]."""

    def __init__(self, num_in: int, num_units: int) -> None:
        super().__init__()
        self.cell = braintrace.nn.LRUCell(num_in, num_units, r_min=0.9, r_max=0.999, max_phase=3.14)

    def update(self, x: jax.Array) -> jax.Array:
        y = self.cell(x)
        modes = self.cell.h_re.value, self.cell.h_im.value
        return jnp.concatenate([*map(jnp.asarray, modes), y], axis=-1)


def diagonal(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Module:
    """A linear recurrent unit of complex modes, and a perceptron with one hidden layer of 64."""
    return brainstate.nn.Sequential(
        Modes(num_in, num_units),
        braintrace.nn.Linear(2 * num_units + num_in, 64),
        jax.nn.relu,
        braintrace.nn.Linear(64, num_out),
    )


class LeakyTanh(Layer):
    """Leaky neurons ``h' = leak h + (1 - leak) tanh([x, h] W + b)``."""

    kept = ("h",)
    h: Any

    def __init__(self, num_in: int, num_units: int, leak: float = 0.9) -> None:
        super().__init__(num_units)
        self.leak = leak
        self.linear = braintrace.nn.Linear(
            num_in + num_units, num_units, w_init=brainstate.nn.init.Orthogonal()
        )

    def update(self, x: jax.Array) -> jax.Array:
        new = jnp.tanh(self.linear(jnp.concatenate([x, self.h.value], axis=-1)))
        self.h.value = self.leak * self.h.value + (1.0 - self.leak) * new
        return self.h.value


def leaky(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Module:
    """Leaky tanh neurons with a linear readout."""
    cell = LeakyTanh(num_in, num_units)
    return brainstate.nn.Sequential(cell, braintrace.nn.Linear(num_units, num_out))
