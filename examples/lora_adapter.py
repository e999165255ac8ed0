# SPDX-License-Identifier: Apache-2.0
"""A trained GRU adapts to another way of reading by low-rank adapters (braintrace-lora).

The network learns digits row by row. Then they come column by column: it fails. Its weights are
held constant, and adapters of rank 4 beside them learn the new way, online by D-RTRL.
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
from _shared.figure import BLUE, GREEN, ORANGE, drawing, picture
from _shared.networks import gated

import braintrace

UNITS, BATCH, RANK = 64, 64, 4
LAST = jnp.arange(digits.SIDE) == digits.SIDE - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "lora_adapter")
    brainstate.random.seed(options.seed)
    num_epochs = 1 if options.quick else 30
    data = digits.load()
    upright, turned = data.train_images, columns(data.train_images)
    model = gated(digits.SIDE, UNITS, digits.CLASSES)
    before = train("rows", model, upright, num_epochs)
    right = accuracies(model)
    adapt(model)
    after = train("columns, adapters", model, turned, num_epochs)
    right += accuracies(model)[1:]
    new, old = count(model), UNITS * (3 * (digits.SIDE + UNITS) + 3)
    print(f"held-out accuracy, by rows {right[0]:.3f}, by columns {right[1]:.3f}")
    print(f"by columns with adapters {right[2]:.3f} ({new} weights beside {old} constant ones)")

    with drawing(options.figure, 0.5, 0.5, 1.4, 1.4) as (rows, other, learnt, bars):
        picture(rows, upright[3].reshape(8, 8), "by rows", cmap="gray")
        picture(other, turned[3].reshape(8, 8), "by columns", cmap="gray")
        for axes in (rows, other):
            axes.set_aspect("equal")
        first = range(1, num_epochs + 1)
        learnt.plot(first, before, color=BLUE, label="rows", marker=".")
        second = range(num_epochs + 1, 2 * num_epochs + 1)
        learnt.plot(second, after, color=GREEN, label="columns", marker=".")
        learnt.set(xlabel="epoch", ylabel="training loss")
        learnt.legend(loc="center left")
        names = ("rows", "columns,\nbefore", "columns,\nadapters")
        bars.bar(names, 100 * np.array(right), color=(BLUE, ORANGE, GREEN))
        bars.set(ylabel="held-out digits read (%)", ylim=(0, 100))
    return 0


def columns(images: np.ndarray) -> np.ndarray:
    """Images [N, 64] with rows and columns exchanged."""
    return images.reshape(-1, digits.SIDE, digits.SIDE).swapaxes(1, 2).reshape(len(images), -1)


def adapt(model: Any) -> None:
    """Make the weights of the cell constants, each with a trained adapter that starts at zero."""
    cell = model.layers[0]
    for gate in ("Wz", "Wr", "Wh"):
        setattr(cell, gate, adapter(getattr(cell, gate).weight.value))


def adapter(pretrained: dict[str, jax.Array]) -> braintrace.nn.LoRA:
    """A constant product with a low-rank one beside it."""
    weight, bias = pretrained["weight"], pretrained["bias"]
    num_in, num_out = weight.shape
    layer = braintrace.nn.LoRA(
        num_in,
        RANK,
        num_out,
        base_module=lambda x: braintrace.matmul(x, weight, bias),
        alpha=1.0,
    )
    layer.weight.value = {**layer.weight.value, "lora_b": jnp.zeros((RANK, num_out))}
    return layer


def train(label: str, model: Any, images: np.ndarray, num_epochs: int) -> list[float]:
    """Train all parameters that a model has; the losses of the epochs."""
    pictures, labels = jnp.asarray(images), jnp.asarray(digits.load().train_labels)
    learner = braintrace.compile(model, "d_rtrl", pictures[:BATCH, :8], batch_size=BATCH)
    rate = learning.falling(5e-3, num_epochs * (len(labels) // BATCH))
    adam = learner.optimizer(learning.adam(rate))

    def learn(chosen: jax.Array, key: jax.Array) -> jax.Array:
        learner.reset_state(BATCH, model_states=True)
        grads, loss = learner.etrace_grad(
            digits.rows(key, pictures[chosen]),
            step_fn=lambda row: learning.cross_entropy(learner(row), labels[chosen]).mean(),
            mask=LAST,
            carry_trace=False,  # every digit starts from a reset
            return_value=True,
            loss_output="scalar",
        )
        adam.update(grads)
        return loss

    return learning.epochs(label, learn, len(labels), BATCH, num_epochs)


def accuracies(model: Any) -> list[float]:
    """The share of held-out images that are read right after the last row, and the last column."""
    images, labels = digits.load().test_images, digits.load().test_labels
    both = jnp.asarray(np.concatenate([images, columns(images)]))
    xs = digits.rows(jax.random.key(0), both)
    answers = learning.outputs(model, xs, len(both))[-1].argmax(-1)
    return [float((found == labels).mean()) for found in np.split(answers, 2)]


def count(model: Any) -> int:
    """How many numbers are trained in the cell."""
    values = [p.value for p in model.layers[0].states(brainstate.ParamState).values()]
    return sum(leaf.size for leaf in jax.tree.leaves(values))


if __name__ == "__main__":
    raise SystemExit(main())
