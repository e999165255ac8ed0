# SPDX-License-Identifier: Apache-2.0
"""A GRU reads digits row by row and answers after the eighth; trained online by D-RTRL (task B)."""

from __future__ import annotations

from collections.abc import Sequence

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import digits, learning
from _shared.arguments import parse
from _shared.figure import BLUE, curve, drawing
from _shared.networks import gated

import braintrace

UNITS, BATCH = 64, 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "digit_rows")
    brainstate.random.seed(options.seed)
    data, num_epochs = digits.load(), 2 if options.quick else 40
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    model = gated(digits.SIDE, UNITS, digits.CLASSES)
    learner = braintrace.compile(model, "d_rtrl", images[:BATCH, : digits.SIDE], batch_size=BATCH)
    rate = learning.falling(5e-3, num_epochs * (len(labels) // BATCH))
    adam = learner.optimizer(learning.adam(rate))
    last_row = jnp.arange(digits.SIDE) == digits.SIDE - 1

    def learn(chosen: jax.Array, key: jax.Array) -> jax.Array:
        learner.reset_state(BATCH, model_states=True)
        grads, loss = learner.etrace_grad(
            digits.rows(key, images[chosen]),
            step_fn=lambda row: learning.cross_entropy(learner(row), labels[chosen]).mean(),
            mask=last_row,
            carry_trace=False,  # every digit starts from a reset
            return_value=True,
            loss_output="scalar",
        )
        adam.update(grads)
        return loss

    losses = learning.epochs("digit rows", learn, len(labels), BATCH, num_epochs)
    xs = digits.rows(jax.random.key(0), jnp.asarray(data.test_images))
    answers = learning.outputs(model, xs, len(data.test_labels)).argmax(-1)
    right = (answers == data.test_labels).mean(1)
    print(f"held-out accuracy {right[-1]:.3f} (logistic regression on all pixels: 0.969)")

    with drawing(options.figure, 1.2, 1.2, 1) as (learnt, sooner, mistaken):
        curve(learnt, losses, "training loss")
        sooner.bar(range(1, 9), 100 * right, color=BLUE)
        sooner.set(xlabel="rows seen", ylabel="read right (%)", title="asked before the end")
        counts = np.zeros((10, 10), int)
        np.add.at(counts, (data.test_labels, answers[-1]), 1)
        np.fill_diagonal(counts, 0)
        mistaken.imshow(counts, cmap="viridis")
        mistaken.set(xlabel="read as", ylabel="is", title="mistakes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
