# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs to show: each part of a report and of a drawing occurs in one of them."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace as bt
from tests import zoo
from tests.zoo import HIDDEN, IN, weight


def compiled(model: Any, *args: Any, batch: int | None = 2, **options: Any) -> Any:
    brainstate.nn.init_all_states(model, batch_size=batch)
    return bt.compile_etrace_graph(model, *args, **options)


def of_zoo(name: str) -> Any:
    case = zoo.case(name, 2, steps=1)
    return bt.compile_etrace_graph(case.model, case.xs[0])


def stack(cell: Any, layers: int) -> Any:
    cells = [cell(IN if k == 0 else HIDDEN, HIDDEN) for k in range(layers)]
    model = brainstate.nn.Sequential(*cells, bt.nn.Linear(HIDDEN, 2))
    return compiled(model, jnp.ones((2, IN)))


class Wrapped(brainstate.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.an_attribute_with_quite_a_long_name = inner

    def update(self, x: Any) -> Any:
        return self.an_attribute_with_quite_a_long_name(x)


class LongPaths(brainstate.nn.Module):
    """Long, unicode and integer parts of paths."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Wrapped(Wrapped(bt.nn.GRUCell(HIDDEN, HIDDEN))) for _ in range(2)]
        self.populations_of_the_primary_area = {
            "größe": blocks,
            "<深い&層>": bt.nn.GRUCell(IN, HIDDEN),
        }

    def update(self, x: Any) -> Any:
        x = self.populations_of_the_primary_area["<深い&層>"](x)
        for block in self.populations_of_the_primary_area["größe"]:
            x = block(x)
        return x


class Everything(zoo.Leaky):
    """Excluded, plain and frozen parameters, a carrier, a stopped gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = weight(HIDDEN, HIDDEN), weight(HIDDEN, 2)
        self.bias, self.idle = weight(HIDDEN), weight(3)

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state(batch_size)
        self.delay = brainstate.ShortTermState(self.start(batch_size))

    def update(self, x: Any) -> Any:
        late, old = self.delay.value, self.h.value
        self.delay.value = old
        stopped = bt.matmul(jax.lax.stop_gradient(old), jnp.eye(HIDDEN))
        drive = bt.matmul(x, self.w.value) + bt.matmul(jnp.tanh(late), self.mix.value)
        self.h.value = 0.8 * old + drive + stopped + self.bias.value
        return bt.matmul(self.h.value, self.out.value)


class FanOut(brainstate.nn.Module):
    """One operation drives two groups, and two weights have the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.layers = [zoo.Leaky(), zoo.Leaky()]
        self.layers[1].w = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        shared = bt.matmul(x, self.w.value)
        for layer in self.layers:
            layer.h.value = 0.5 * layer.h.value + bt.matmul(x, layer.w.value) + shared
            x = layer.h.value
        return x


def everything() -> Any:
    return compiled(Everything(), jnp.ones((2, IN)), frozen=["idle"])


GRAPHS = {
    "everything": everything,
    "fan-out": lambda: compiled(FanOut(), jnp.ones((2, IN))),
    "long-paths": lambda: compiled(LongPaths(), jnp.ones((2, IN))),
    "gru-20": lambda: stack(bt.nn.GRUCell, 20),
    "lstm-4": lambda: stack(bt.nn.LSTMCell, 4),
    **{
        name: (lambda name=name: of_zoo(name))
        for name in (
            "lif", "top-down", "residual", "partial-path", "used-twice", "plain-parameters",
            "learned-leak", "delayed", "nested", "group-state", "transposed", "direct",
        )
    },
}  # fmt: skip
