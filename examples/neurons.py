# SPDX-License-Identifier: Apache-2.0
"""Train ``brainpy.state`` neurons with physical units, online, to read handwritten digits.

Adaptive leaky integrate-and-fire neurons (ALIF) receive the pixels as Poisson spikes, and one
another's spikes through recurrent weights. Potentials are in mV, currents in mA, times in ms. The
connections are ``braintrace.nn.Linear``; everything else is an ordinary ``brainpy.state`` model.

Run it with ``python examples/neurons.py [--epochs N]``. It needs
``pip install braintrace-core[examples,neurons] braintrace-dense``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import brainpy.state as bp
import brainstate
import jax
import jax.numpy as jnp
import optax
import saiunit as u
from _digits import data
from braintools import init, surrogate

import braintrace

STEPS, UNITS, BATCH = 20, 64, 64
DT = 1.0 * u.ms


class SpikingReader(brainstate.nn.Module):
    """Spikes ``[B, 64]`` of the pixels at a time -> logits ``[B, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        size, drive = data.PIXELS, init.KaimingNormal(30.0, unit=u.mA)
        self.inputs = braintrace.nn.Linear(size, UNITS, w_init=drive, b_init=0.1 * u.mA)
        self.recurrent = braintrace.nn.Linear(
            UNITS, UNITS, w_init=init.KaimingNormal(0.5, unit=u.mA), b_init=None
        )
        self.neurons = bp.ALIF(
            UNITS,
            tau=20.0 * u.ms,
            tau_a=100.0 * u.ms,
            V_th=1.0 * u.mV,
            beta=0.05 * u.mV,
            spk_fun=surrogate.ReluGrad(),
        )
        self.readout = braintrace.nn.Linear(UNITS, data.CLASSES)

    def update(self, spikes: jax.Array) -> jax.Array:
        current = self.inputs(spikes) + self.recurrent(self.neurons.get_spike())
        return self.readout(self.neurons(current))


def loss_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(epochs: int) -> float:
    """Train, print the progress, and return the accuracy on held-out images."""
    brainstate.random.seed(0)
    digits, keys = data.load(), jax.random.split(jax.random.key(0), 2)
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    model = SpikingReader()
    example = jnp.zeros((BATCH, data.PIXELS), images.dtype)
    learner = braintrace.compile(model, "d_rtrl", example, batch_size=BATCH)
    print(learner.graph.report())
    weights, optimizer = learner.param_states, optax.adam(5e-3)
    # the numbers of a weight are optimised in the weight's own unit, which its gradient shares
    moments = optimizer.init({path: state.value for path, state in weights.items()})

    @brainstate.transform.jit
    def learn(moments: Any, key: jax.Array, chosen: jax.Array) -> tuple[Any, jax.Array]:
        spikes, wanted = data.poisson_spikes(key, images[chosen], STEPS), labels[chosen]
        learner.reset_state(BATCH, model_states=True)
        grads, losses = learner.etrace_grad(
            spikes, step_fn=lambda s: loss_of(learner(s), wanted), return_value=True
        )
        values = {path: state.value for path, state in weights.items()}
        changes, moments = optimizer.update(grads, moments, values)
        for path, value in optax.apply_updates(values, changes).items():
            weights[path].value = value
        return moments, losses.mean()

    for epoch, (batches, batch_keys) in enumerate(data.epochs(keys[0], epochs, BATCH)):
        for chosen, key in zip(batches, batch_keys, strict=True):
            moments, loss = learn(moments, key, chosen)
        print(f"epoch {epoch + 1:3d} of {epochs}: loss {loss:.3f}")
    return accuracy(model, keys[1])


def accuracy(model: SpikingReader, key: jax.Array) -> float:
    """The share of held-out images that are read right, by the mean of the logits over time."""
    digits = data.load()
    brainstate.nn.init_all_states(model, batch_size=len(digits.test_labels))
    spikes = data.poisson_spikes(key, jnp.asarray(digits.test_images), STEPS)
    logits = brainstate.transform.for_loop(model, spikes).mean(0)
    return float((logits.argmax(-1) == digits.test_labels).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    parser = argparse.ArgumentParser(description="Train brainpy.state neurons online.")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images (20)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "warning: relation_excluded_non_temporal")  # the readout
    with brainstate.environ.context(dt=DT):
        print(f"held-out accuracy {train(options.epochs):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
