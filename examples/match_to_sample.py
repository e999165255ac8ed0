# SPDX-License-Identifier: Apache-2.0
"""Spiking neurons remember a direction for a second: delayed match to sample (task F).

A stimulus, a silence of a second, a second stimulus: was it the first one again? The slow currents
of 100 generalised integrate-and-fire neurons hold what the silence would wipe out.
"""

from __future__ import annotations

from collections.abc import Sequence

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning
from _shared.arguments import parse
from _shared.figure import BLUE, ORANGE, curve, drawing, picture
from _shared.matching import INPUTS, STEPS, TEST, trials
from _shared.networks import adaptive

import braintrace

UNITS, BATCH = 100, 64
ASKED = jnp.arange(STEPS) >= STEPS - TEST


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "match_to_sample")
    brainstate.random.seed(options.seed)
    batch, per_round, rounds = (8, 2, 2) if options.quick else (BATCH, 20, 25)
    model = adaptive(INPUTS, UNITS, 2)
    learner = braintrace.compile(model, "d_rtrl", jnp.zeros((batch, INPUTS)), batch_size=batch)
    adam = learner.optimizer(learning.adam(1e-3))

    def learn(key: jax.Array) -> jax.Array:
        xs, match = trials(key, batch)

        def step(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = learner(x)
            return learning.cross_entropy(logits, match).mean(), logits

        learner.reset_state(batch, model_states=True)
        grads, logits = learner.etrace_grad(
            xs, step_fn=step, mask=ASKED, carry_trace=False, has_aux=True
        )
        adam.update(grads)
        return (answers(logits) == match).mean()

    @brainstate.transform.jit
    def learn_more(key: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(learn, jax.random.split(key, per_round)).mean()

    right = learning.rounds("match to sample", learn_more, rounds, "right")
    xs, match = trials(brainstate.random.split_key(), 8 * batch)
    logits = learning.outputs(model, xs, 8 * batch)
    accuracy = (answers(jnp.asarray(logits)) == match).mean()
    print(f"accuracy on {8 * batch} new trials {accuracy:.3f} after {rounds * per_round} batches")

    with drawing(options.figure, 1.4, 1.2, 1.2) as (seen, answer, learnt):
        picture(seen, np.asarray(xs[:, 0]).T, "spikes of 100 inputs", cmap="gray")
        seen.set_xlabel("first stimulus, delay, second stimulus")
        steps, chances = range(1, TEST + 1), np.asarray(jax.nn.softmax(logits[-TEST:]))[..., 1]
        for value, colour, name in ((1, BLUE, "the same"), (0, ORANGE, "another")):
            low, middle, high = np.quantile(chances[:, match == value], (0.1, 0.5, 0.9), axis=1)
            answer.plot(steps, middle, color=colour, label=name)
            answer.fill_between(steps, low, high, color=colour, alpha=0.25)
        answer.set(xlabel="steps of the second stimulus", title="probability of a match")
        answer.legend(loc="center right")
        curve(learnt, right, "answered right", f"round of {per_round} batches")
    return 0


def answers(logits: jax.Array) -> jax.Array:
    """By the mean of the logits [T, B, 2] while the second stimulus is shown."""
    return jnp.einsum("t,tbc->bc", ASKED.astype(logits.dtype), logits).argmax(-1)


if __name__ == "__main__":
    raise SystemExit(main())
