# SPDX-License-Identifier: Apache-2.0
"""A GRU reads digits row by row, trained online by D-RTRL on all devices there are (task B).

The examples are divided among the devices, and with --units N the units among groups of N. Several
processes are one program: start each with --processes N --process I --coordinator HOST:PORT.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import digits, learning
from _shared.arguments import parse, positive_int, whole_number
from _shared.figure import BLUE, curve, drawing
from _shared.networks import gated
from _shared.progress import Progress

import braintrace

UNITS, BATCH = 64, 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    where = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    where.add_argument("--units", type=positive_int, default=1)
    where.add_argument("--processes", type=positive_int, default=1)
    where.add_argument("--process", type=whole_number, default=0)
    where.add_argument("--coordinator", default="127.0.0.1:8476")
    place, others = where.parse_known_args(arguments)
    options = parse(others, __doc__, "devices")
    if place.processes > 1:  # before anything asks for a device
        jax.distributed.initialize(place.coordinator, place.processes, place.process)
    mesh = jax.make_mesh((jax.device_count() // place.units, place.units), ("data", "model"))
    by_example = jax.NamedSharding(mesh, jax.P(None, "data"))

    brainstate.random.seed(options.seed)
    data, num_epochs = digits.load(), 2 if options.quick else 20
    model = gated(digits.SIDE, UNITS, digits.CLASSES)
    first = jnp.zeros((BATCH, digits.SIDE))
    learner = braintrace.compile(model, "d_rtrl", first, batch_size=BATCH)
    learner.shard(mesh, batch="data", units="model")  # all that this program says about devices
    adam = learner.optimizer(learning.adam(5e-3))
    last_row = np.arange(digits.SIDE) == digits.SIDE - 1

    def loss_of(row: jax.Array, labels: jax.Array) -> jax.Array:
        return learning.cross_entropy(learner(row), labels).mean()

    @brainstate.transform.jit
    def learn(xs: jax.Array, labels: jax.Array) -> jax.Array:
        learner.reset_state(BATCH, model_states=True)
        grads, loss = learner.etrace_grad(
            xs, labels, step_fn=loss_of, mask=last_row, return_value=True, loss_output="scalar"
        )
        adam.update(grads)
        return loss

    def batches(images: np.ndarray, labels: np.ndarray, order: np.ndarray) -> tuple:
        """Rows [8, B, 8] and labels [8, B]: each process keeps the examples of its devices."""
        rows = images[order].reshape(-1, digits.SIDE, digits.SIDE).swapaxes(0, 1)
        both = rows, np.broadcast_to(labels[order], rows.shape[:2])
        return tuple(jax.make_array_from_callback(v.shape, by_example, v.__getitem__) for v in both)

    rng, losses = np.random.default_rng(options.seed), []  # the same in every process
    count = jax.device_count()
    shown = f"{count} device{'s' * (count != 1)}"
    with Progress(shown, num_epochs) as progress:
        for _ in range(num_epochs):
            order = rng.permutation(len(data.train_labels) // BATCH * BATCH)
            found = [
                learn(*batches(data.train_images, data.train_labels, chosen))
                for chosen in order.reshape(-1, BATCH)
            ]
            losses.append(float(np.mean([float(loss) for loss in found])))
            progress.advance(f"loss {losses[-1]:.3f}")

    @brainstate.transform.jit
    def read(xs: jax.Array, labels: jax.Array) -> jax.Array:
        learner.reset_state(BATCH, model_states=True)
        answers = learner.etrace_evolve(xs, return_outputs=True).argmax(-1)
        return (answers == labels).mean(1)

    held_out = np.arange(len(data.test_labels) // BATCH * BATCH).reshape(-1, BATCH)
    parts = [read(*batches(data.test_images, data.test_labels, chosen)) for chosen in held_out]
    right = np.mean([np.asarray(part) for part in parts], 0)
    print(f"{shown}, mean loss {losses[-1]:.6f}, held-out accuracy {right[-1]:.3f}")
    if jax.process_index() == 0:
        with drawing(options.figure, 1.2, 1.2) as (learnt, sooner):
            curve(learnt, losses, "training loss")
            sooner.bar(range(1, 9), 100 * right, color=BLUE)
            sooner.set(xlabel="rows seen", ylabel="read right (%)", title="asked before the end")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
