# SPDX-License-Identifier: Apache-2.0
"""Spiking neurons with convolutions see where random dots drift (braintrace-conv).

A frame alone says nothing: the direction is in how dots move on. Every position has neurons of its
own, all with the same two kernels, which are trained online by D-RTRL.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning
from _shared.arguments import parse
from _shared.figure import COLOURS, curve, drawing, picture
from _shared.neurons import LIF, LeakyReadout

import braintrace

SIDE, CHANNELS, STEPS, BATCH = 12, 8, 16, 32
WAYS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


class MotionDetector(brainstate.nn.Module):
    """Frames [B, 12, 12, 1] -> logits of four directions [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        image = (SIDE, SIDE)
        seen = braintrace.nn.Conv2d((*image, 1), CHANNELS, 3, b_init=0.0)
        lateral = braintrace.nn.Conv2d((*image, CHANNELS), CHANNELS, 3)
        self.neurons = LIF((*image, CHANNELS), seen, lateral, leak=0.7)
        self.readout = LeakyReadout(len(WAYS), braintrace.nn.Linear(CHANNELS, len(WAYS)))

    def update(self, frame: jax.Array) -> jax.Array:
        return self.readout(10.0 * self.neurons(frame).mean((1, 2)))


@partial(jax.jit, static_argnames="count")
def films(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Frames [T, count, 12, 12, 1] of dots that drift one pixel a step, and ways [count]."""
    keys = jax.random.split(key)
    dots = jax.random.bernoulli(keys[0], 0.15, (count, SIDE, SIDE)).astype(jnp.float32)
    ways = jax.random.randint(keys[1], (count,), 0, len(WAYS))
    moves = jnp.arange(STEPS)[:, None, None] * jnp.array(list(WAYS.values()))[ways]

    def moved(dots: jax.Array, move: jax.Array) -> jax.Array:
        return jnp.roll(dots, move, (0, 1))

    frames = jax.vmap(jax.vmap(moved), (None, 0))(dots, moves)
    return frames[..., None], ways


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "conv_motion")
    brainstate.random.seed(options.seed)
    batch, per_round, num = (4, 2, 2) if options.quick else (BATCH, 20, 30)
    model = MotionDetector()
    learner = braintrace.compile(
        model, "d_rtrl", jnp.zeros((batch, SIDE, SIDE, 1)), batch_size=batch
    )
    adam = learner.optimizer(learning.adam(5e-3))

    def learn(key: jax.Array) -> jax.Array:
        frames, ways = films(key, batch)

        def step(frame: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = learner(frame)
            return learning.cross_entropy(logits, ways).mean(), logits

        learner.reset_state(batch, model_states=True)
        grads, logits = learner.etrace_grad(frames, step_fn=step, carry_trace=False, has_aux=True)
        adam.update(grads)
        return (logits[-1].argmax(-1) == ways).mean()

    @brainstate.transform.jit
    def learn_more(key: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(learn, jax.random.split(key, per_round)).mean()

    right = learning.rounds("conv motion", learn_more, num, "right")
    frames, ways = films(brainstate.random.split_key(), 8 * batch)
    logits, spikes = learning.outputs(model, frames, 8 * batch, model.neurons.spikes)
    found = (logits.argmax(-1) == np.asarray(ways)).mean(1)
    print(f"right on {8 * batch} new films: {found[0]:.3f} after a frame, {found[-1]:.3f} after 16")

    with drawing(options.figure, 0.8, 0.8, 1.3, 1.2) as (seen, fired, tuning, learnt):
        film = int(np.asarray(ways == 0).argmax())
        picture(seen, frames[:, film, 5, :, 0], "one row, drifting", cmap="gray")
        picture(fired, spikes[:, film, 5].mean(-1), "its neurons", cmap="viridis")
        seen.set_ylabel("16 steps")
        rates = [spikes[4:, np.asarray(ways) == way].mean((0, 1, 2, 3)) for way in range(4)]
        for way, (name, colour) in enumerate(zip(WAYS, COLOURS, strict=False)):
            places = np.arange(CHANNELS) + 0.2 * way - 0.3
            tuning.bar(places, np.nan_to_num(rates[way]), 0.2, color=colour, label=name)
        tuning.set(xlabel="channel", title="spikes per step and neuron")
        tuning.margins(y=0.35)
        tuning.legend(ncols=2, fontsize=8, loc="upper center")
        curve(learnt, right, "right", f"round of {per_round} batches")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
