# SPDX-License-Identifier: Apache-2.0
"""A text is read word by word, through a table of vectors (braintrace-embedding).

Sixteen streams of the standard library's help texts. The weights change every 16 words and nothing
is ever reset, so that the trace of the table holds the 512 words that a stream has read last.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pydoc_data import topics
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning, text
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, drawing
from _shared.neurons import Layer

import braintrace

SIZE, UNITS, STREAMS, EVERY, PASSES, ROWS = 48, 96, 16, 16, 8, 512
COMMON = 1000  # words with a vector of their own; all others share one
SHOWN = 30  # words in the picture


class Reader(Layer):
    """Words [B] to logits [B, words]: vectors of the past fade, each entry at a pace of its own."""

    kept = ("past",)
    past: Any

    def __init__(self, words: int) -> None:
        super().__init__((SIZE,))
        self.table = braintrace.nn.Embedding(words, SIZE, rows=ROWS, overflow="forget")
        self.decays = jnp.linspace(0.3, 0.95, SIZE)
        self.mixed = braintrace.nn.Linear(2 * SIZE, UNITS)
        self.readout = braintrace.nn.Linear(UNITS, words)

    def update(self, words: jax.Array) -> jax.Array:
        now = self.table(words)
        self.past.value = self.decays * self.past.value + now
        both = jnp.concatenate([now, self.past.value], -1)
        return self.readout(jnp.tanh(self.mixed(both)))


def load() -> tuple[np.ndarray, np.ndarray]:
    """Words as whole numbers from the most common one on, and which these are; 0 is any other."""
    whole = "\n".join(topics.topics[name] for name in sorted(topics.topics)).lower()
    words, codes, counts = np.unique(
        np.array(re.findall(r"[a-z]+|[^\sa-z]", whole)), return_inverse=True, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:COMMON]
    number = np.zeros(len(words), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    return number[codes], np.concatenate([["(other)"], words[order]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "embedding_words")
    brainstate.random.seed(options.seed)
    codes, words = load()
    cut = int(0.9 * len(codes))
    now, after = text.streams(codes[:cut], STREAMS, EVERY)
    passes = 2 if options.quick else PASSES
    if options.quick:
        now, after = now[:4], after[:4]
    model = Reader(len(words))
    learner = braintrace.compile(model, "d_rtrl", jnp.zeros(STREAMS, "int32"), batch_size=STREAMS)
    adam = learning.adam(learning.falling(4e-3, passes * len(now)))
    part = [a.reshape(-1, STREAMS) for a in (now, after)]

    def step(now: jax.Array, after: jax.Array) -> jax.Array:
        return learning.cross_entropy(learner(now), after).mean()

    def learn(key: jax.Array) -> jax.Array:
        losses = learner.etrace_update(*part, step_fn=step, optimizer=adam, update_every=EVERY)
        return losses.mean() / math.log(2.0)

    bits = learning.rounds("words", learn, passes, "bits per word")
    held = [a.reshape(-1, STREAMS) for a in text.streams(codes[cut:], STREAMS, EVERY)]
    logits = learning.outputs(model, jnp.asarray(held[0]), STREAMS)
    cost = float(learning.cross_entropy(jnp.asarray(logits), jnp.asarray(held[1])).mean())
    alone = frequencies(codes[:cut], held[1], len(words))
    print(f"held-out bits per word {cost / math.log(2.0):.2f} (by frequency alone: {alone:.2f})")
    (trace,) = learner.get_etrace_of(("table", "weight"))
    shape, table = trace["weight"].shape[:3], model.table.weight.value.shape
    print(f"trace {shape} of a table {table}; words forgotten: {int(trace['lost'].sum())}")

    with drawing(options.figure, 1, 2.4) as (learnt, plane):
        learnt.plot(range(1, passes + 1), bits, color=BLUE)
        learnt.axhline(alone, color=GREY, linestyle=":", label="frequencies")
        learnt.set(xlabel="passes", ylabel="bits per word")
        learnt.legend()
        vectors = np.asarray(model.table.weight.value)[1 : SHOWN + 1]
        vectors = vectors - vectors.mean(0)
        places = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:2].T
        plane.scatter(*places.T, s=4, color=GREY)
        for word, place in zip(words[1:], places, strict=False):
            plane.annotate(word, place, fontsize=7)
        plane.set(title="the most common words", xticks=[], yticks=[])
    return 0


def frequencies(train: np.ndarray, test: np.ndarray, size: int) -> float:
    """Bits per word of a model that knows how common each word is."""
    counts = np.bincount(train, minlength=size) + 1.0
    return float(-np.log2(counts / counts.sum())[test].mean())


if __name__ == "__main__":
    raise SystemExit(main())
