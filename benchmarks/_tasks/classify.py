# SPDX-License-Identifier: Apache-2.0
"""Tasks A to D and the negative control: label sequences, learning from a training set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning
from _shared.problem import Examples, Split

from _tasks import rules


@dataclass(frozen=True)
class Classification:
    """A network, sequences to label, and how to train.

    ``build()`` makes the network; ``load()`` the examples; ``encode(key, inputs [B, ...])`` a
    sequence [T, B, in]. ``rate`` is Adam's at the start; it falls to zero. ``decay`` is pp_prop's.
    ``block_size`` is of online rules: as many steps at a time. ``together``: the seeds are one
    program. ``rms`` times the rate is that of RMSprop.
    """

    build: Callable[[], brainstate.nn.Module]
    load: Callable[[], Split]
    encode: Callable[[jax.Array, jax.Array], jax.Array]
    rate: float
    decay: float
    epochs: int = 40
    batch_size: int = 64
    block_size: int | str = "auto"
    together: bool = False
    rms: float = 1.0

    def train(self, rule: str, seed: int, epochs: int | None = None) -> float:
        """Held-out accuracy after ``epochs`` passes (of the task, if ``None``)."""
        return _train(self, rule, seed, self.epochs if epochs is None else epochs)

    def train_together(
        self, rule: str, seeds: Sequence[int], epochs: int | None = None
    ) -> list[float]:
        """As :meth:`train` from the weights of every seed, in one program."""
        return _train_together(self, rule, seeds, self.epochs if epochs is None else epochs)

    def memory(self, rule: str, longer: int = 1) -> int:
        """Bytes of temporary arrays of a batch's gradient, ``longer`` times as many steps."""
        return _memory(self, rule, longer)


def _train_together(
    task: Classification, rule: str, seeds: Sequence[int], epochs: int
) -> list[float]:
    split, size = task.load(), task.batch_size

    def start(seed: int) -> dict[Any, Any]:
        brainstate.random.seed(seed)
        return rules.values_of(task.build())

    def run(weights: dict[Any, Any], key: jax.Array) -> jax.Array:
        model = task.build()
        for path, state in brainstate.graph.states(model, brainstate.ParamState).items():
            state.value = weights[path]
        learn = _learner(task, model, split.train, rule, epochs)
        key, test_key = jax.random.split(key)

        def epoch(key: jax.Array) -> jax.Array:
            batches = learning.batches(key, len(split.train.labels), size)
            keys = jax.random.split(key, len(batches))
            return brainstate.transform.for_loop(learn, batches, keys).mean()

        brainstate.transform.for_loop(epoch, jax.random.split(key, epochs))
        return _right(model, task, split.test, test_key)

    starts = jax.tree.map(lambda *each: jnp.stack(each), *map(start, seeds))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    together = brainstate.transform.jit(brainstate.transform.vmap(run))
    return [float(value) for value in together(starts, keys)]


def _right(
    model: brainstate.nn.Module, task: Classification, test: Examples, key: jax.Array
) -> jax.Array:
    """As :func:`_accuracy`, inside of a program."""
    xs = task.encode(key, jnp.asarray(test.inputs))
    brainstate.nn.init_all_states(model, batch_size=len(test.labels))
    found = brainstate.transform.for_loop(model, xs)
    answers = jnp.einsum("nt,tnc->nc", jnp.asarray(test.weights), found).argmax(-1)
    return jnp.mean(answers == jnp.asarray(test.labels))


def _memory(task: Classification, rule: str, longer: int) -> int:
    train, size = task.load().train, task.batch_size
    model = task.build()
    xs = task.encode(jax.random.key(0), jnp.asarray(train.inputs[:size]))
    weights, labels = jnp.asarray(train.weights[:size].T), jnp.asarray(train.labels[:size])
    given = xs, weights, jnp.broadcast_to(labels, weights.shape)
    gradient = rules.gradient_of(rule, model, _loss, xs[0], task.decay, block_size=task.block_size)
    program = brainstate.transform.jit(lambda *sequences: gradient(*sequences)[0])
    long = [jnp.tile(a, (longer, *(1 for _ in a.shape[1:]))) for a in given]
    return int(program.lower(*long).compile().memory_analysis().temp_size_in_bytes)


def _train(task: Classification, rule: str, seed: int, epochs: int) -> float:
    brainstate.random.seed(seed)
    model, split = task.build(), task.load()
    key, test_key = jax.random.split(jax.random.key(seed))
    learn = _learner(task, model, split.train, rule, epochs)

    @brainstate.transform.jit
    def epoch(batches: jax.Array, keys: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(learn, batches, keys).mean()

    for each in jax.random.split(key, epochs):
        batches = learning.batches(each, len(split.train.labels), task.batch_size)
        epoch(batches, jax.random.split(each, len(batches))).block_until_ready()
    return _accuracy(model, task, split.test, test_key)


def _learner(
    task: Classification, model: brainstate.nn.Module, train: Examples, rule: str, epochs: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A function that learns from one batch (indices [B]) and returns its mean loss."""
    inputs, weights, labels = map(jnp.asarray, (train.inputs, train.weights, train.labels))
    first = task.encode(jax.random.key(0), inputs[: task.batch_size])[0]
    gradient = rules.gradient_of(rule, model, _loss, first, task.decay, block_size=task.block_size)
    updates = epochs * (len(labels) // task.batch_size)
    rate = task.rate * (task.rms if rule.endswith("_rms") else 1.0)
    update = rules.updater(model, rules.optimiser(rule, learning.falling(rate, updates)))

    def learn(batch: jax.Array, key: jax.Array) -> jax.Array:
        xs, counts = task.encode(key, inputs[batch]), weights[batch].T
        same = jnp.broadcast_to(labels[batch], counts.shape)
        grads, losses, _ = gradient(xs, counts, same)
        update(grads)
        return losses.mean()

    return learn


def _loss(
    network: brainstate.nn.Module, x: jax.Array, weights: jax.Array, labels: jax.Array
) -> tuple[jax.Array, None]:
    return jnp.mean(weights * learning.cross_entropy(network(x), labels)), None


def _accuracy(
    model: brainstate.nn.Module, task: Classification, test: Examples, key: jax.Array
) -> float:
    """The fraction of held-out sequences whose label has the largest weighted mean logit."""
    xs = task.encode(key, jnp.asarray(test.inputs))
    found = learning.outputs(model, xs, len(test.labels))
    answers = np.einsum("nt,tnc->nc", test.weights, found).argmax(-1)
    return float(np.mean(answers == test.labels))
