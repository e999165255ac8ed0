# SPDX-License-Identifier: Apache-2.0
"""A character model, a table of vectors below two gated layers, has the gradient of the oracle."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp

import braintrace as bt
from braintrace.testing import assert_tree_close, d_rtrl_oracle

COUNT, SIZE, BATCH, STEPS = 6, 3, 2, 7


class Characters(brainstate.nn.Module):
    """Tokens [B] to logits [B, COUNT]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = bt.nn.Embedding(COUNT, SIZE, key=0)
        self.layers = [bt.nn.GRUCell(SIZE, SIZE, key=k) for k in (1, 2)]
        self.out = bt.nn.Linear(SIZE, COUNT, key=3)

    def update(self, x: jax.Array) -> jax.Array:
        y = self.table(x)
        for layer in self.layers:
            y = layer(y)
        return self.out(y)


def test_a_character_model() -> None:
    model = Characters()
    xs = jax.random.randint(jax.random.key(4), (STEPS, BATCH), 0, COUNT)
    data = xs, jnp.roll(xs, -1, 0)

    def loss(logits: jax.Array, token: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1).sum()

    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH, downstream="step")
    expected = d_rtrl_oracle(model, data, loss).grads
    for block in (1, 3, "auto"):
        learner.reset_state(BATCH, model_states=True)
        found = learner.etrace_grad(
            *data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", block_size=block
        )
        assert_tree_close(found, expected, 1e-9)
