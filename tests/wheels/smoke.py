# SPDX-License-Identifier: Apache-2.0
"""Compile a small network and train it online; run where only the wheels are installed."""

from __future__ import annotations

from pathlib import Path

import brainstate
import jax
import jax.numpy as jnp

import braintrace

STEPS, BATCH, INPUTS, UNITS = 6, 4, 3, 8


class Network(brainstate.nn.Module):
    """A GRU and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = braintrace.nn.GRUCell(INPUTS, UNITS)
        self.readout = braintrace.nn.Linear(UNITS, 1)

    def update(self, x: jax.Array) -> jax.Array:
        return self.readout(self.cell(x))


def main() -> None:
    brainstate.random.seed(0)
    xs = jax.random.normal(jax.random.key(0), (STEPS, BATCH, INPUTS))
    ys = jnp.cumsum(xs.sum(axis=-1, keepdims=True), axis=0)
    learner = braintrace.compile(Network(), "d_rtrl", xs[0], batch_size=BATCH)

    def step(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((learner(x) - y) ** 2)

    means = []
    for _ in range(20):
        learner.reset_state(batch_size=BATCH, model_states=True)
        grads, losses = learner.etrace_grad(xs, ys, step_fn=step, return_value=True)
        means.append(float(losses.mean()))
        for path, state in learner.param_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.05 * g, state.value, grads[path])
    if not means[-1] < 0.9 * means[0]:
        raise SystemExit(f"training did not lower the loss: {means[0]:.4f} -> {means[-1]:.4f}")
    where = Path(braintrace.__file__).parent
    print(f"loss {means[0]:.4f} -> {means[-1]:.4f} with {where}")


if __name__ == "__main__":
    main()
