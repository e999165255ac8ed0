# SPDX-License-Identifier: Apache-2.0
"""A linear recurrent unit reads digits pixel by pixel, 64 steps; D-RTRL is exact (task C).

Its modes do not mix, so what D-RTRL computes while the network runs is the gradient of
backpropagation through time (BPTT). The program compares both before it trains.
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
from _shared.figure import BLUE, GREY, ORANGE, curve, drawing
from _shared.networks import diagonal
from matplotlib.patches import Circle

import braintrace

MODES, BATCH = 128, 64
LAST = jnp.arange(digits.PIXELS) == digits.PIXELS - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "digit_pixels")
    brainstate.random.seed(options.seed)
    data, num_epochs = digits.load(), 1 if options.quick else 40
    images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    model = diagonal(1, 32 if options.quick else MODES, digits.CLASSES)
    learner = braintrace.compile(model, "d_rtrl", images[:BATCH, :1], batch_size=BATCH)
    rate = learning.falling(5e-3, num_epochs * (len(labels) // BATCH))
    adam = learner.optimizer(learning.adam(rate))

    @brainstate.transform.jit
    def learn(chosen: jax.Array) -> tuple[dict[Any, Any], jax.Array]:
        learner.reset_state(BATCH, model_states=True)
        grads, loss = learner.etrace_grad(
            digits.pixels(jax.random.key(0), images[chosen]),
            step_fn=lambda pixel: learning.cross_entropy(learner(pixel), labels[chosen]).mean(),
            mask=LAST,
            carry_trace=False,  # every digit starts from a reset
            return_value=True,
            loss_output="scalar",
        )
        adam.update(grads)
        return grads, loss

    def epoch(key: jax.Array) -> float:
        order = learning.batches(key, len(labels), BATCH)
        return float(np.mean([learn(chosen)[1] for chosen in order]))

    before, wanted = eigenvalues(model), bptt(model, images, labels)
    online, _ = learn(jnp.arange(BATCH))
    print(f"D-RTRL and BPTT differ by {difference(online, wanted):.1e}")
    losses = learning.rounds("digit pixels", epoch, num_epochs)
    xs = digits.pixels(jax.random.key(0), jnp.asarray(data.test_images))
    answers = learning.outputs(model, xs, len(data.test_labels))[-1].argmax(-1)
    print(f"held-out accuracy {(answers == data.test_labels).mean():.3f}")

    with drawing(options.figure, 1.3, 1, height=3.0) as (learnt, plane):
        curve(learnt, losses, "training loss")
        plane.add_patch(Circle((0, 0), 1.0, fill=False, color=GREY))
        plane.scatter(before.real, before.imag, s=9, color=ORANGE, label="before")
        now = eigenvalues(model)
        plane.scatter(now.real, now.imag, s=9, color=BLUE, label="after")
        plane.set(aspect="equal", xlim=(-1.05, 1.05), ylim=(0, 1.05), title="eigenvalues")
        plane.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return 0


def bptt(model: Any, images: jax.Array, labels: jax.Array) -> dict[Any, Any]:
    """The gradient of the first batch, backwards through all 64 steps."""
    xs = digits.pixels(jax.random.key(0), images[:BATCH])

    def loss() -> jax.Array:
        brainstate.nn.reset_all_states(model, batch_size=BATCH)
        logits = brainstate.transform.for_loop(model, xs)[-1]
        return learning.cross_entropy(logits, labels[:BATCH]).mean()

    weights = model.states(brainstate.ParamState)
    return brainstate.transform.jit(brainstate.transform.grad(loss, weights))()


def difference(one: dict[Any, Any], other: dict[Any, Any]) -> float:
    """The largest difference of two gradients, relative to the largest entry of each array."""
    leaves = ([np.asarray(leaf) for leaf in jax.tree.leaves(dict(a))] for a in (one, other))
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(*leaves, strict=True))


def eigenvalues(model: Any) -> np.ndarray:
    """By what each mode is multiplied at every step."""
    cell = model.layers[0].cell
    return np.asarray(jnp.exp(-jnp.exp(cell.nu_log.value) + 1j * jnp.exp(cell.theta_log.value)))


if __name__ == "__main__":
    raise SystemExit(main())
