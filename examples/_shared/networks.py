# SPDX-License-Identifier: Apache-2.0
"""The networks: ordinary modules whose trainable products come from ``braintrace.nn``."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace

from .neurons import GIF, LIF, Layer, LeakyReadout, Map

# --- spiking ------------------------------------------------------------------------------------


def dense(num_in: int, num_units: int) -> tuple[Map, Map]:
    """Trained connections of neurons: from the input, and from one another without a bias."""
    scale = brainstate.nn.init.LecunNormal()
    return (
        braintrace.nn.Linear(num_in, num_units, w_init=scale),
        braintrace.nn.Linear(num_units, num_units, w_init=scale, b_init=None),
    )


def readout(num_units: int, num_out: int) -> LeakyReadout:
    """A leaky readout with trained weights."""
    return LeakyReadout(num_out, braintrace.nn.Linear(num_units, num_out))


def spiking(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Sequential:
    """LIF neurons with a leaky readout."""
    neurons = LIF((num_units,), *dense(num_in, num_units))
    return brainstate.nn.Sequential(neurons, readout(num_units, num_out))


def feedforward(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Sequential:
    """LIF neurons that do not drive one another, with a leaky readout."""
    neurons = LIF((num_units,), dense(num_in, num_units)[0], jnp.zeros_like)
    return brainstate.nn.Sequential(neurons, readout(num_units, num_out))


def adaptive(num_in: int, num_units: int, num_out: int) -> brainstate.nn.Module:
    """GIF neurons with a leaky readout."""
    neurons = GIF((num_units,), *dense(num_in, num_units))
    return brainstate.nn.Sequential(neurons, readout(num_units, num_out))


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
        super().__init__((num_units,))
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
