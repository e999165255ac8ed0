# SPDX-License-Identifier: Apache-2.0
"""Time constants of 30 cells from noisy recordings, while they are recorded (braintrace-elemwise).

Each cell is a leaky integrator with a time constant and a gain of its own, between 2 and 100 steps
and 0.5 and 2. A model of the same form follows the recording, and both parameters of each cell are
trained at every tenth step. Parameters that act position by position have exact traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _shared import learning
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, drawing
from _shared.neurons import Layer

import braintrace

CELLS, NOISE, EVERY, PART = 30, 0.05, 10, 250


class Cells(Layer):
    """Leaky integrators ``v' = a v + (1 - a) gain x`` of one input each, x [30]."""

    kept = ("v",)
    v: Any

    def __init__(self, time_constants: jax.Array, gains: jax.Array) -> None:
        super().__init__((CELLS,))
        self.log_tau = brainstate.ParamState(jnp.log(time_constants))
        self.gain = brainstate.ParamState(gains)

    def update(self, x: jax.Array) -> jax.Array:
        stay = braintrace.element_wise(self.log_tau.value, fn=lambda t: jnp.exp(-jnp.exp(-t)))
        gain = braintrace.element_wise(self.gain.value)
        self.v.value = stay * self.v.value + (1.0 - stay) * gain * x
        return self.v.value


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "elemwise_time_constants")
    brainstate.random.seed(options.seed)
    rounds, part = (2, 100) if options.quick else (30, PART)
    rng = np.random.default_rng(options.seed)
    true_taus = jnp.asarray(rng.permutation(np.geomspace(2, 100, CELLS)), jnp.float32)
    true_gains = jnp.asarray(rng.uniform(0.5, 2.0, CELLS), jnp.float32)
    xs = brainstate.random.randn(rounds * part, CELLS).cumsum(0)
    xs = 3.0 * jnp.sin(0.3 * xs)  # each cell has an input of its own
    recorded = learning.outputs(cells := Cells(true_taus, true_gains), xs[:, None], 1)[:, 0]
    recorded = jnp.asarray(recorded) + NOISE * brainstate.random.randn(*recorded.shape)
    del cells

    model = Cells(jnp.full(CELLS, 15.0), jnp.ones(CELLS))
    learner = braintrace.compile(model, "d_rtrl", xs[0])
    adam = optax.adam(optax.exponential_decay(0.03, rounds * part // EVERY, 0.02))
    starts = iter(range(0, rounds * part, part))
    path = [taus(model)]

    def step(x: jax.Array, seen: jax.Array) -> jax.Array:
        return ((learner(x) - seen) ** 2).sum()

    def learn(key: jax.Array) -> float:
        now = slice(first := next(starts), first + part)
        learner.etrace_update(
            xs[now], recorded[now], step_fn=step, optimizer=adam, update_every=EVERY
        )
        path.append(taus(model))
        return float(np.median(np.abs(path[-1] / true_taus - 1.0)))

    errors = learning.rounds("time constants", learn, rounds, "median error of tau")
    worst = np.abs(path[-1] / true_taus - 1.0).max()
    off = np.abs(model.gain.value / true_gains - 1.0)
    print(f"time constants: median error {errors[-1]:.1%}, largest {worst:.1%}")
    print(f"gains: median error {np.median(off):.1%}, largest {off.max():.1%}")

    with drawing(options.figure, 1.6, 1, height=3.0) as (learnt, compared):
        steps = np.arange(rounds + 1) * part / 1000
        learnt.semilogy(steps, np.stack(path), color=BLUE, linewidth=0.8)
        learnt.set(xlabel="thousand steps", ylabel="time constant (steps)")
        compared.loglog([1.5, 130], [1.5, 130], color=GREY, linewidth=0.8)
        compared.loglog(true_taus, path[-1], "o", color=BLUE, markersize=3.5)
        compared.set(xlabel="true", ylabel="found", aspect="equal")
    return 0


def taus(model: Cells) -> np.ndarray:
    """The time constants at present, in steps."""
    return np.exp(np.asarray(model.log_tau.value))


if __name__ == "__main__":
    raise SystemExit(main())
