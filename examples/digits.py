# SPDX-License-Identifier: Apache-2.0
"""Train recurrent networks online, with eligibility traces, to read handwritten digits.

Two networks learn scikit-learn's digits with D-RTRL: a GRU that sees one row of pixels per step,
and spiking neurons that see noisy spike trains. Each is trained once more with backpropagation
through time (BPTT) from the same initial weights, and both are compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits import figure
from _digits.held_out import HeldOut, Raster
from _digits.options import Options, parse
from _digits.results import Run, shortfalls, table
from _shared import digits as data
from _shared.networks import dense, readout
from _shared.neurons import LIF
from _shared.progress import Progress

import braintrace

# --- The networks: ordinary modules whose trainable products come from braintrace.nn -----------


class RowReader(brainstate.nn.Module):
    """A GRU that reads one row of pixels ``[B, 8]`` per step; returns logits ``[B, 10]``."""

    def __init__(self, num_units: int = 64) -> None:
        super().__init__()
        self.cell = braintrace.nn.GRUCell(data.SIDE, num_units)
        gate = self.cell.Wz.weight  # nearly closed at the start: what was read is kept for long
        gate.value = {**gate.value, "bias": jnp.full(num_units, -2.0)}
        self.readout = braintrace.nn.Linear(num_units, data.CLASSES)

    def update(self, row: jax.Array) -> jax.Array:
        return self.readout(self.cell(row))


class SpikeReader(brainstate.nn.Module):
    """Spiking neurons that read spike trains ``[B, 64]``; returns logits ``[B, 10]``."""

    def __init__(self, num_units: int = 128) -> None:
        super().__init__()
        self.neurons = LIF((num_units,), *dense(data.PIXELS, num_units))
        self.readout = readout(num_units, data.CLASSES)

    def update(self, x: jax.Array) -> jax.Array:
        return self.readout(self.neurons(x))


# --- The tasks: how an image becomes a sequence, and when the answer counts ---------------------


@dataclass(frozen=True)
class Task:
    """A network, its input sequences and its optimiser.

    ``encode(key, images)`` turns images ``[B, 64]`` into a sequence ``[T, B, in]``; the loss and
    the answer of the network are means over the steps, weighted by ``step_weights`` ``[T]``.
    """

    name: str
    title: str
    build: Callable[[], brainstate.nn.Module]
    encode: Callable[[jax.Array, jax.Array], jax.Array]
    step_weights: np.ndarray
    optimiser: Callable[[int], optax.GradientTransformation]
    spikes_of: Callable[[Any], jax.Array] | None = None


def adam(num_updates: int, rate: float, decay: float) -> optax.GradientTransformation:
    """Adam with weight decay, a rate that falls to zero, and gradients of norm 1 at most."""
    falling = optax.cosine_decay_schedule(rate, num_updates)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(falling, weight_decay=decay))


TASKS = {
    "gru": Task(
        name="gru",
        title="GRU, row by row",
        build=RowReader,
        encode=data.rows,
        step_weights=data.SIDE * np.eye(data.SIDE, dtype=np.float32)[-1],  # the last step counts
        optimiser=partial(adam, rate=5e-3, decay=0.1),
    ),
    "lif": Task(
        name="lif",
        title="Spiking neurons, Poisson-coded",
        build=SpikeReader,
        encode=partial(data.poisson_spikes, num_steps=32),
        step_weights=np.ones(32, np.float32),  # every step counts
        optimiser=partial(adam, rate=3e-3, decay=0.0),
        spikes_of=lambda network: network.neurons.spikes(),
    ),
}


# --- The learning rules: each gives gradients of the mean loss over a batch of sequences --------

Gradient = Callable[[jax.Array, jax.Array], tuple[dict, jax.Array]]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def online(model: brainstate.nn.Module, task: Task, options: Options) -> Gradient:
    """D-RTRL: eligibility traces run forward with the network, ``block_size`` steps at a time."""
    batch_size = options.batch_size
    example = task.encode(jax.random.key(0), jnp.zeros((batch_size, data.PIXELS), jnp.float32))[0]
    learner = braintrace.compile(model, options.algorithm, example, batch_size=batch_size)
    print(learner.graph.report(), flush=True)

    def gradient(xs: jax.Array, labels: jax.Array) -> tuple[dict, jax.Array]:
        learner.reset_state(batch_size=batch_size, model_states=True)
        grads, losses = learner.etrace_grad(
            xs,
            task.step_weights,
            step_fn=lambda x, weight: weight * cross_entropy(learner(x), labels),
            block_size=options.block_size,
            carry_trace=False,  # the next batch starts from a reset: no trace has to outlive this
            return_value=True,
        )
        return grads, losses.mean()

    return gradient


def through_time(model: brainstate.nn.Module, task: Task, options: Options) -> Gradient:
    """BPTT: run the whole sequence, keep everything, and differentiate backwards."""
    brainstate.nn.init_all_states(model, batch_size=options.batch_size)

    def loss(xs: jax.Array, labels: jax.Array) -> jax.Array:
        brainstate.nn.reset_all_states(model, batch_size=options.batch_size)
        losses = brainstate.transform.for_loop(
            lambda x, weight: weight * cross_entropy(model(x), labels), xs, task.step_weights
        )
        return losses.mean()

    return brainstate.transform.grad(loss, model.states(brainstate.ParamState), return_value=True)


RULES = {"D-RTRL": online, "BPTT": through_time}


# --- Training: the same for every network and every rule ---------------------------------------


def train(task: Task, rule: str, options: Options) -> Run:
    """Train ``task`` from initial weights that depend on ``options.seed`` only."""
    brainstate.random.seed(options.seed)
    model = task.build()
    key, test_key = jax.random.split(jax.random.key(options.seed))
    held_out = HeldOut(task.build(), task.encode, task.step_weights, test_key)
    gradient = RULES[rule](model, task, options)
    update = updater(model, gradient, task, options)

    @brainstate.transform.jit
    def epoch(batches: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = brainstate.transform.for_loop(update, batches, keys)
        return losses.mean(), held_out.accuracy(model)

    def rasters() -> list[Raster]:
        return [held_out.raster(model, task.spikes_of)] if task.spikes_of else []

    curves, before = [], rasters()
    start = time.perf_counter()
    with Progress(f"{task.name}  {rule:<6}", options.epochs) as progress:
        for batches, keys in data.epochs(key, options.epochs, options.batch_size):
            loss, accuracy = map(float, epoch(batches, keys))
            curves.append((loss, accuracy))
            progress.advance(f"loss {loss:.3f}  held-out accuracy {accuracy:.3f}")
    seconds = time.perf_counter() - start
    losses, accuracies = zip(*curves, strict=True)
    return Run(task.title, rule, losses, accuracies, seconds, (*before, *rasters()))


def updater(
    model: brainstate.nn.Module, gradient: Gradient, task: Task, options: Options
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A function that improves the weights on one batch and returns its loss."""
    digits = data.load()
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels)
    weights = dict(brainstate.graph.states(model, brainstate.ParamState))

    def values() -> dict:
        return {path: weight.value for path, weight in weights.items()}

    optimiser = task.optimiser(options.epochs * (len(labels) // options.batch_size))
    moments = brainstate.ShortTermState(optimiser.init(values()))

    def update(batch: jax.Array, key: jax.Array) -> jax.Array:
        grads, loss = gradient(task.encode(key, images[batch]), labels[batch])
        changes, moments.value = optimiser.update(dict(grads), moments.value, values())
        for path, value in optax.apply_updates(values(), changes).items():
            weights[path].value = value
        return loss

    return update


# --- The program -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__, len(data.load().train_labels))
    names = TASKS if options.task == "both" else (options.task,)
    rules = RULES if options.bptt else ("D-RTRL",)
    jax.config.update("jax_enable_x64", False)  # float32 whatever the environment says
    runs = []
    for name in names:
        print(f"\n{TASKS[name].title}\n")
        runs += [train(TASKS[name], rule, options) for rule in rules]
    print(f"\n{table(runs)}\n")
    figure.save(runs, options.figure)
    print(f"figure: {options.figure}")
    return check([run for run in runs if run.rule == "D-RTRL"], options.check)


def check(runs: Sequence[Run], least: float | None) -> int:
    """The exit status: 1 when a training stayed below the accuracy that was asked for."""
    missed = [] if least is None else shortfalls(runs, least)
    for line in missed:
        print(f"--check: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
