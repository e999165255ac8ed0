# SPDX-License-Identifier: Apache-2.0
"""A GRU reads a text once after the other and predicts each next character (task E).

Sixteen streams of the standard library's help texts; the weights change every 32 characters, while
states and traces go on: nothing is reset, and memory does not grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning, text
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, drawing
from _shared.networks import gated

import braintrace

UNITS, STREAMS, EVERY, PASSES = 128, 16, 32, 6
SHOWN = 70  # characters in the picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "characters")
    brainstate.random.seed(options.seed)
    found = text.load()
    size, limit = found.size, 20 if options.quick else None
    now, after = (a[:limit] for a in text.streams(found.train, STREAMS, EVERY))
    parts = min(10, len(now)) * (1 if options.quick else PASSES)
    length = len(now) // min(10, len(now))  # updates in a part
    model = gated(size, 32 if options.quick else UNITS, size)
    learner = braintrace.compile(model, "d_rtrl", jnp.zeros((STREAMS, size)), batch_size=STREAMS)
    adam = learning.adam(learning.falling(4e-3, parts * length))

    def step(now: jax.Array, after: jax.Array) -> jax.Array:
        return learning.cross_entropy(learner(jax.nn.one_hot(now, size)), after).mean()

    where = iter(np.resize(np.arange(len(now) // length), parts) * length)

    def learn(key: jax.Array) -> jax.Array:
        first = next(where)
        part = (a[first : first + length].reshape(-1, STREAMS) for a in (now, after))
        losses = learner.etrace_update(*part, step_fn=step, optimizer=adam, update_every=EVERY)
        return losses.mean() / math.log(2.0)

    bits = learning.rounds("characters", learn, parts, "bits per character")
    costs, letters = held_out(model, found, limit)
    order_two = text.order_two(found)
    print(f"held-out bits per character {costs.mean():.2f} (order-2 n-gram: {order_two:.2f})")

    with drawing(options.figure, 1, 2.4) as (learnt, line):
        read = np.arange(1, parts + 1) * length * EVERY * STREAMS / 1e6
        learnt.plot(read, bits, color=BLUE)
        learnt.axhline(order_two, color=GREY, linestyle=":", label="order-2 n-gram")
        learnt.set(xlabel="million characters read", ylabel="bits per character")
        learnt.legend()
        line.bar(range(SHOWN), costs[:SHOWN, 0], color=BLUE)
        line.set_xticks(range(SHOWN), letters[:SHOWN, 0], fontfamily="monospace", fontsize=7)
        line.tick_params(length=0)
        line.set(xlim=(-1, SHOWN), ylabel="bits", title="what surprises in a held-out text")
    return 0


def held_out(
    model: brainstate.nn.Module, found: text.Text, limit: int | None
) -> tuple[np.ndarray, Any]:
    """Bits that each held-out character costs, and the characters, [T, streams]."""
    now, after = (a[:limit].reshape(-1, STREAMS) for a in text.streams(found.test, STREAMS, EVERY))
    logits = learning.outputs(model, jax.nn.one_hot(now, found.size), STREAMS)
    costs = np.asarray(learning.cross_entropy(jnp.asarray(logits), jnp.asarray(after)))
    letters = np.char.replace(found.letters.astype(str), "\n", "\N{PILCROW SIGN}")
    return costs / math.log(2.0), letters[after]


if __name__ == "__main__":
    raise SystemExit(main())
