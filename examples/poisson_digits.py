# SPDX-License-Identifier: Apache-2.0
"""Spiking neurons learn to read digits that come as Poisson spikes, online by D-RTRL (task A).

128 leaky integrate-and-fire neurons see 64 spike trains, one step of time per call; a leaky readout
is asked at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import digits, learning
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, curve, drawing, picture
from _shared.networks import spiking

import braintrace

UNITS, BATCH = 128, 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "poisson_digits")
    brainstate.random.seed(options.seed)
    data, num_epochs = digits.load(), 1 if options.quick else 40
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    model = spiking(digits.PIXELS, UNITS, digits.CLASSES)
    learner = braintrace.compile(model, "d_rtrl", images[:BATCH], batch_size=BATCH)
    rate = learning.falling(3e-3, num_epochs * (len(labels) // BATCH))
    adam = learner.optimizer(learning.adam(rate))

    def learn(chosen: jax.Array, key: jax.Array) -> jax.Array:
        learner.reset_state(BATCH, model_states=True)
        grads, losses = learner.etrace_grad(
            digits.poisson_spikes(key, images[chosen]),
            step_fn=lambda x: learning.cross_entropy(learner(x), labels[chosen]).mean(),
            carry_trace=False,  # every digit starts from a reset
            return_value=True,
        )
        adam.update(grads)
        return losses.mean()

    losses = learning.epochs("poisson digits", learn, len(labels), BATCH, num_epochs)
    xs = digits.poisson_spikes(brainstate.random.split_key(), jnp.asarray(data.test_images))
    neurons: Any = model.layers[0]
    logits, spikes = learning.outputs(model, xs, len(data.test_labels), neurons.spikes)
    right = logits.mean(0).argmax(-1) == data.test_labels
    print(f"held-out accuracy {right.mean():.3f} (logistic regression on the pixels: 0.969)")

    with drawing(options.figure, 0.6, 1.4, 1.2, 1.2) as (digit, raster, answer, learnt):
        label = data.test_labels[0]
        picture(digit, data.test_images[0].reshape(8, 8), f"held-out {label}", cmap="gray")
        digit.set_aspect("equal")
        picture(raster, spikes[:, 0].T, f"spikes of {UNITS} neurons", cmap="gray")
        raster.set_xlabel("32 steps")
        chances = np.asarray(jax.nn.softmax(logits[:, 0]))
        answer.plot(chances, color=GREY, linewidth=0.8)
        answer.plot(chances[:, label], color=BLUE, label=f"it is a {label}")
        answer.set(xlabel="step", title="probability")
        answer.legend()
        curve(learnt, losses, "training loss")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
