# SPDX-License-Identifier: Apache-2.0
"""Train ``brainpy.state`` neurons with physical units, online, to read handwritten digits.

Adaptive leaky integrate-and-fire neurons (ALIF) receive the pixels as Poisson spikes, and one
another's spikes through recurrent weights. Potentials are in mV, currents in mA, times in ms. The
connections are ``braintrace.nn.Linear``; everything else is an ordinary ``brainpy.state`` model.

Run it with ``python examples/neurons.py [--epochs N] [--figure PATH]``. It needs
``pip install braintrace-core[examples,neurons] braintrace-dense``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import brainpy.state as bp
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import saiunit as u
from _shared import digits as data
from _shared import learning
from _shared.arguments import figure_path
from _shared.figure import BLUE, ORANGE, drawing, picture
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

    def look(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Spikes, potentials in mV and adaptation, as numbers."""
        neurons = self.neurons
        return neurons.get_spike(), neurons.V.value / u.mV, u.get_mantissa(neurons.a.value)


def loss_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(epochs: int, figure: Path | None) -> float:
    """Train, print the progress, and return the accuracy on held-out images.

    What the neurons do on one of these is drawn into ``figure``.
    """
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
    spikes = data.poisson_spikes(keys[1], jnp.asarray(digits.test_images), STEPS)
    logits, seen = learning.outputs(model, spikes, len(digits.test_labels), model.look)
    if figure is not None:
        draw(figure, logits[:, 0], *(found[:, 0] for found in seen))
    # the answer is the largest mean over time
    return float((logits.mean(0).argmax(-1) == digits.test_labels).mean())


def draw(figure: Path, logits: np.ndarray, fired: np.ndarray, v: np.ndarray, a: np.ndarray) -> None:
    """What happens on the first held-out image: spikes, potentials, adaptation, the answer."""
    digits = data.load()
    with drawing(figure, 0.6, 1.2, 1.2, 1.2) as (image, raster, potential, answer):
        picture(image, digits.test_images[0].reshape(8, 8), "held-out image", cmap="gray")
        image.set_aspect("equal")
        picture(raster, fired.T, f"spikes of {UNITS} neurons", cmap="gray")
        raster.set_xlabel(f"{STEPS} ms")
        busy = fired.sum(0).argmax()
        potential.plot(v[:, busy], color=BLUE, label="potential (mV)")
        potential.plot(a[:, busy], color=ORANGE, label="adaptation")
        potential.set(xlabel="ms", title="the busiest neuron")
        potential.legend()
        answer.bar(range(data.CLASSES), logits.mean(0), color=BLUE)
        answer.set(xlabel="digit", title="answer", xticks=range(data.CLASSES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    parser = argparse.ArgumentParser(description="Train brainpy.state neurons online.")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images (20)")
    parser.add_argument("--figure", type=figure_path, metavar="PATH", help="save a picture")
    options = parser.parse_args(arguments)
    with brainstate.environ.context(dt=DT):
        print(f"held-out accuracy {train(options.epochs, options.figure):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
