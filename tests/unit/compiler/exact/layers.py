# SPDX-License-Identifier: Apache-2.0
"""Layers of a width and a number of states, with what another one gives for input."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp

import braintrace as bt


class Gated(brainstate.nn.Module):
    """A state that is not uniform; ``mixes``: over the examples [2, ...] of its input."""

    def __init__(self, inputs: int, outputs: int, mixes: bool = False) -> None:
        super().__init__()
        self.w, self.mixes = bt.nn.Linear(inputs, outputs), mixes
        self.v = brainstate.HiddenState(jnp.zeros((2, outputs)))

    def update(self, x: Any) -> Any:
        x = x - x.mean(0) if self.mixes else x
        self.v.value = jnp.tanh(self.v.value) + self.w(x)
        return self.v.value


def graph_of(*layers: Any) -> Any:
    model = brainstate.nn.Sequential(*layers)
    return bt.compile_etrace_graph(model, jnp.ones((2, 3)), downstream="exact")
