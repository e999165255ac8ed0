# SPDX-License-Identifier: Apache-2.0
"""A GRU tells nine speakers apart, whose utterances differ in length; D-RTRL with a mask (task D).

JapaneseVowels: 12 channels, 7 to 29 steps, 270 utterances to train on and 370 held out. They are
data files of the package aeon, of which nothing else is needed:
python -m pip install --no-deps aeon
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning, vowels
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, curve, drawing, picture
from _shared.networks import gated

import braintrace

UNITS, BATCH = 64, 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 1 when the data are not there."""
    options = parse(arguments, __doc__, "speakers")
    if vowels.folder() is None:
        print(vowels.MISSING, file=sys.stderr)
        return 1
    brainstate.random.seed(options.seed)
    split, num_epochs = vowels.split(), 2 if options.quick else 60
    train, test = split.train, split.test
    inputs, labels = jnp.asarray(train.inputs), jnp.asarray(train.labels)
    spoken = jnp.asarray(train.weights)  # 0 after the end; the weights of an utterance add up to 29
    model = gated(vowels.CHANNELS, UNITS, vowels.SPEAKERS)
    learner = braintrace.compile(model, "d_rtrl", inputs[:BATCH, 0], batch_size=BATCH)
    rate = learning.falling(5e-3, num_epochs * (len(labels) // BATCH))
    adam = learner.optimizer(learning.adam(rate))

    def learn(chosen: jax.Array, key: jax.Array) -> jax.Array:
        learner.reset_state(BATCH, model_states=True)
        grads, loss = learner.etrace_grad(
            vowels.steps_first(key, inputs[chosen]),
            step_fn=lambda x: learning.cross_entropy(learner(x), labels[chosen]),  # [B]
            mask=spoken[chosen].T,  # [T, B]
            carry_trace=False,
            return_value=True,
            loss_output="scalar",
        )
        adam.update(grads)
        return loss

    losses = learning.epochs("speakers", learn, len(labels), BATCH, num_epochs)
    xs = vowels.steps_first(jax.random.key(0), jnp.asarray(test.inputs))
    logits = learning.outputs(model, xs, len(test.labels))
    right = np.einsum("nt,tnc->nc", test.weights, logits).argmax(-1) == test.labels
    print(f"held-out accuracy {right.mean():.3f} of {len(right)} utterances")

    with drawing(options.figure, 1.1, 1.2, 1.2) as (heard, answer, learnt):
        early = logits[0, range(len(right)), test.labels] - logits[0].max(1)
        shown = np.where(right, early, 0.0).argmin()  # right in the end, least so at first
        steps, speaker = np.count_nonzero(test.weights[shown]), test.labels[shown]
        picture(heard, test.inputs[shown, :steps].T, "12 channels", cmap="viridis")
        heard.set_xlabel(f"{steps} steps")
        chances = np.asarray(jax.nn.softmax(logits[:steps, shown]))
        answer.plot(chances, color=GREY, linewidth=0.8)
        answer.plot(chances[:, speaker], color=BLUE, label="who it is")
        answer.set(xlabel="step", title="probability of nine speakers")
        answer.legend()
        curve(learnt, losses, "training loss")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
