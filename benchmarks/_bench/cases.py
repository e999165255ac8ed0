# SPDX-License-Identifier: Apache-2.0
"""The models, weights and sequences that are measured; runs beside either library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace
from _bench.settings import Sizes

OUTPUTS = 10


@jax.custom_jvp
def spike(distance: jax.Array) -> jax.Array:
    """1 where the membrane is above threshold, else 0; differentiated as a fast sigmoid."""
    return (distance > 0).astype(distance.dtype)


@spike.defjvp
def _surrogate(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (distance,), (change,) = primals, tangents
    return spike(distance), change / (1.0 + 5.0 * jnp.abs(distance)) ** 2


class LIF(brainstate.nn.Module):
    """Leaky integrate-and-fire neurons that drive one another: x [B, in] to spikes [B, units]."""

    def __init__(self, num_in: int, num_units: int, leak: float = 0.9) -> None:
        super().__init__()
        self.num_units, self.leak = num_units, leak
        self.feedforward = braintrace.nn.Linear(num_in, num_units)
        self.recurrent = braintrace.nn.Linear(num_units, num_units, b_init=None)

    def init_state(self, batch_size: int, **kwargs: object) -> None:
        self.V = brainstate.HiddenState(jnp.zeros((batch_size, self.num_units)))

    def reset_state(self, batch_size: int, **kwargs: object) -> None:
        self.V.value = jnp.zeros((batch_size, self.num_units))

    def update(self, x: jax.Array) -> jax.Array:
        fired = spike(self.V.value - 1.0)
        current = self.feedforward(x) + self.recurrent(fired)
        self.V.value = self.leak * self.V.value - fired + current
        return spike(self.V.value - 1.0)


class Network(brainstate.nn.Module):
    """Recurrent layers and a linear readout: x [B, in] to [B, OUTPUTS]."""

    def __init__(
        self, layer: Callable[[int, int], brainstate.nn.Module], depth: int, sizes: Sizes
    ) -> None:
        super().__init__()
        widths = (sizes.inputs, *(sizes.units,) * depth)
        self.sizes = sizes
        self.layers = brainstate.nn.Sequential(*(layer(*pair) for pair in pairwise(widths)))
        self.readout = braintrace.nn.Linear(sizes.units, OUTPUTS)

    def update(self, x: jax.Array) -> jax.Array:
        return self.readout(self.layers(x))


@dataclass(frozen=True)
class Case:
    """A network, and whether its inputs are spikes."""

    build: Callable[[Sizes], Network]
    spiking: bool = False


CASES = {
    "gru": Case(partial(Network, braintrace.nn.GRUCell, 1)),
    "lstm": Case(partial(Network, braintrace.nn.LSTMCell, 1)),
    "lif": Case(partial(Network, LIF, 1), spiking=True),
    "stack": Case(partial(Network, LIF, 3), spiking=True),
}


def model(case: Case, sizes: Sizes) -> Network:
    """The network of a case, with states and the same weights in every process."""
    network = case.build(sizes)
    brainstate.nn.init_all_states(network, batch_size=sizes.batch)
    rng = np.random.default_rng(0)
    states = network.states(brainstate.ParamState)
    for path in sorted(states, key=str):
        states[path].value = jax.tree.map(partial(_draw, rng), states[path].value)
    return network


def _draw(rng: np.random.Generator, leaf: jax.Array) -> jax.Array:
    scale = 1.0 / np.sqrt(leaf.shape[0]) if leaf.ndim > 1 else 0.1
    return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)


def sequences(case: Case, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """Inputs [T, B, in] and targets [T, B, OUTPUTS]."""
    rng = np.random.default_rng(1)
    xs = rng.standard_normal((sizes.steps, sizes.batch, sizes.inputs))
    ys = rng.standard_normal((sizes.steps, sizes.batch, OUTPUTS))
    return jnp.asarray(xs > 0.8 if case.spiking else xs, "float32"), jnp.asarray(ys, "float32")


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of one step."""
    return jnp.mean((output - target) ** 2)
