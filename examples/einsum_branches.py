# SPDX-License-Identifier: Apache-2.0
"""Neurons with dendritic branches, each with weights and a pace of its own (braintrace-einsum).

Four branches of a layer forget at four paces. Each reads all channels with weights of its own, one
product for all branches. What is wanted mixes a recent with a long past: the sign of a product of
two averages. Beside it, neurons with as many weights and one pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import learning
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, ORANGE, drawing
from _shared.neurons import Layer

import braintrace

CHANNELS, UNITS, BRANCHES, BATCH, STEPS = 4, 24, 4, 32, 60


class Branches(Layer):
    """Channels [B, 4] to the logit of a sign [B, 1]."""

    kept = ("h",)
    h: Any

    def __init__(self, decays: Sequence[float]) -> None:
        super().__init__((BRANCHES, UNITS))
        weight = brainstate.random.normal(0.0, 0.5, (BRANCHES, CHANNELS, UNITS))
        self.weight = brainstate.ParamState(weight)
        self.decays = jnp.asarray(decays)[:, None]
        self.somata = braintrace.nn.Linear(BRANCHES * UNITS, UNITS)
        self.readout = braintrace.nn.Linear(UNITS, 1)

    def update(self, x: jax.Array) -> jax.Array:
        driven = braintrace.einsum("bc,rcu->bru", x, self.weight.value)
        self.h.value = self.decays * self.h.value + (1.0 - self.decays) * driven
        branches = jnp.tanh(2.0 * self.h.value).reshape(x.shape[0], -1)
        return self.readout(jnp.tanh(self.somata(branches)))


def task(key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Channels [T, B, 4], and whether a short and a long average agree in sign [T, B, 1]."""
    xs = jax.random.normal(key, (steps, BATCH, CHANNELS))

    def average(decay: float, channel: int) -> jax.Array:
        def step(now: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            now = decay * now + (1.0 - decay) * x
            return now, now

        return jax.lax.scan(step, jnp.zeros(BATCH), xs[..., channel])[1]

    return xs, (average(0.5, 0) * average(0.95, 1) > 0.0)[..., None].astype(xs.dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train both networks; the exit status is 0."""
    options = parse(arguments, __doc__, "einsum_branches")
    updates = 4 if options.quick else 400
    paces = {"four paces": (0.2, 0.6, 0.9, 0.97), "one pace": (0.8,) * BRANCHES}
    found = {}
    for name, decays in paces.items():
        brainstate.random.seed(options.seed)
        found[name] = train(name, Branches(decays), updates)
    with drawing(options.figure, 1, 1.4) as (learnt, weights):
        for (name, (errors, _, _)), color in zip(found.items(), (BLUE, ORANGE), strict=True):
            learnt.plot(range(1, updates + 1), errors, color=color, label=name)
        learnt.set(xlabel="updates", ylabel="error rate")
        learnt.legend()
        used = found["four paces"][2]
        for channel, color in ((0, BLUE), (1, ORANGE), (2, GREY)):
            label = ("wanted briefly", "wanted for long", "not wanted")[channel]
            weights.plot(paces["four paces"], used[:, channel], "o-", color=color, label=label)
        weights.set(xlabel="decay of a branch", ylabel="size of the weights", title="four paces")
        weights.legend()
    return 0


def train(name: str, model: Branches, updates: int) -> tuple[list[float], float, np.ndarray]:
    """Error rates while it learns, that on new sequences, and the size of weights by branch."""
    learner = braintrace.compile(model, "d_rtrl", jnp.zeros((BATCH, CHANNELS)), batch_size=BATCH)
    adam = learner.optimizer(learning.adam(learning.falling(1e-2, updates)))

    def step(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logit = learner(x)
        loss = jnp.mean(jnp.logaddexp(0.0, logit) - y * logit)
        return loss, jnp.mean((logit > 0.0) != (y > 0.0))

    @brainstate.transform.jit
    def learn(key: jax.Array) -> jax.Array:
        learner.reset_state(batch_size=BATCH, model_states=True)
        grads, wrong = learner.etrace_grad(*task(key, STEPS), step_fn=step, has_aux=True)
        adam.update(grads)
        return wrong.mean()

    errors = learning.rounds(name, learn, updates, "error rate")
    xs, ys = task(jax.random.key(1), 200)
    logits = learning.outputs(model, xs, BATCH)
    error = float(np.mean((np.asarray(logits) > 0.0) != (np.asarray(ys) > 0.0)))
    print(f"{name}: {error:.3f} of the signs on new sequences are wrong")
    return errors, error, np.linalg.norm(np.asarray(model.weight.value), axis=-1)


if __name__ == "__main__":
    raise SystemExit(main())
