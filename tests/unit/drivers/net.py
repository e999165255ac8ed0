# SPDX-License-Identifier: Apache-2.0
"""A small network with its data, compiled and driven."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt

T, B, IN, HIDDEN = 7, 3, 2, 3


KEYS = jax.random.split(jax.random.key(0), 2)


class Net(brainstate.nn.Module):
    """A GRU with a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = bt.nn.GRUCell(IN, HIDDEN, key=1)
        self.readout = bt.nn.Linear(HIDDEN, IN, key=2)

    def update(self, x: Any) -> Any:
        return self.readout(self.cell(x))


class Growing(brainstate.nn.Module):
    """Leaky integrators with a leak above one."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak, self.linear = leak, bt.nn.Linear(IN, HIDDEN, key=1)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))

    def update(self, x: Any) -> Any:
        self.h.value = self.leak * self.h.value + self.linear(x)
        return self.h.value


@pytest.fixture
def data() -> tuple[Any, Any]:
    xs = jax.random.normal(KEYS[0], (T, B, IN), float)
    return xs, jax.random.normal(KEYS[1], (T, B, IN), float)


def made(algorithm: Any = "d_rtrl", batch: int = B, model: Any = None, **options: Any) -> Any:
    x = jnp.zeros((batch, IN), float)
    return bt.compile(model or Net(), algorithm, x, batch_size=batch, **options)


def summed(learner: Any) -> Any:
    return lambda x, y: ((learner(x) - y) ** 2).sum()


def per_example(learner: Any) -> Any:
    return lambda x, y: ((learner(x) - y) ** 2).sum(-1)


def of_windows(learner: Any) -> Any:
    return lambda x, y: ((learner(bt.MultiStepData(x)) - y) ** 2).sum((1, 2))


def weights_of(learner: Any) -> Any:
    return {path: state.value for path, state in learner.param_states.items()}
