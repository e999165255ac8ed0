# SPDX-License-Identifier: Apache-2.0
"""Random tails as data: what becomes of the output of an operation until a state takes it.

Its elements are turned, cut, folded and joined again, and often otherwise in one row than in the
next: then every element still reaches one position, but which one is not told by its axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import braintrace as bt

from .models import normal
from .programs import Choices

INPUTS = 2


def _blank(v: Any, axis: int) -> Any:
    """Without what is first along an axis."""
    return jnp.concatenate([0.0 * _part(v, axis, 0, 1), _part(v, axis, 1, v.shape[axis])], axis)


def _part(v: Any, axis: int, start: int, stop: int) -> Any:
    return jax.lax.slice_in_dim(v, start, stop, axis=axis)


#: Moves that keep the shape.
TURNS: dict[str, Callable[[Any, int], Any]] = {
    "as it is": lambda v, axis: v,
    "flip": jnp.flip,
    "roll": lambda v, axis: jnp.roll(v, 1, axis),
    "blank": _blank,
}

#: Moves of a whole array.
MOVES: dict[str, Callable[[Any, int], Any]] = {
    **TURNS,
    "sine": lambda v, axis: jnp.sin(v),
    "swap": lambda v, axis: jnp.moveaxis(v, axis, 0),
    "cut": lambda v, axis: _part(v, axis, 0, max(1, v.shape[axis] - 1)),
    "pad": lambda v, axis: jnp.concatenate([v, jnp.ones_like(_part(v, axis, 0, 1))], axis),
    "fold": lambda v, axis: v.reshape(-1, v.shape[-1]),
    "centre": lambda v, axis: v - v.mean(axis, keepdims=True),
}
OWN = ("as it is", "flip", "roll", "flip", "roll", "blank")
SOMETIMES = (*("as it is",) * 6, *MOVES)


@dataclass(frozen=True)
class Move:
    kind: str
    axis: int

    def run(self, v: Any) -> Any:
        return MOVES[self.kind](v, self.axis % v.ndim)


@dataclass(frozen=True)
class Rows:
    """The rows along an axis, each turned by itself, joined in some order.

    ``along``: the axis that they are joined along, when it is another one;
    ``width``: how many entries of a row are taken, each row's from a place of its own.
    """

    axis: int
    turns: tuple[Move, ...]
    starts: tuple[int, ...]
    width: int | None
    order: int
    along: int | None

    def run(self, v: Any) -> Any:
        rows = [self._row(k, row) for k, row in enumerate(jnp.moveaxis(v, self.axis % v.ndim, 0))]
        along = self.axis if self.along is None else self.along
        return jnp.stack(rows[:: self.order], along % v.ndim)

    def _row(self, k: int, row: Any) -> Any:
        row = self.turns[k % len(self.turns)].run(row)
        width = min(self.width or row.shape[-1], row.shape[-1])
        start = self.starts[k % len(self.starts)] % (row.shape[-1] - width + 1)
        return _part(row, row.ndim - 1, start, start + width)


@dataclass(frozen=True)
class Tail:
    """``shape`` is that of the operation's output; a ``product`` has a row for every example."""

    shape: tuple[int, ...]
    product: bool
    before: Move
    rows: Rows
    after: Move
    block: int

    def run(self, y: Any) -> Any:
        return self.after.run(self.rows.run(self.before.run(y)))


SHAPES = ((2, 3), (3, 3), (3, 2), (2, 3, 3), (2, 3, 2), (2, 4))
SIZE = 16


def tail(data: bytes) -> Tail:
    choices = Choices(data)
    shape, product = choices.pick(SHAPES), choices.pick((True, False))
    ends = [Move(choices.pick(SOMETIMES), choices.pick(range(3))) for _ in range(2)]
    turns = tuple(Move(choices.pick(OWN), choices.pick((-1, -1, -2))) for _ in range(3))
    return Tail(
        shape=shape[-2:] if product else shape,
        product=product,
        before=ends[0],
        rows=Rows(
            axis=choices.pick((0, 0, 1, 2)),
            turns=turns,
            starts=(0, choices.pick(range(3))),
            width=choices.pick((None, None, None, 2, 1)),
            order=choices.pick((1, 1, 1, -1)),
            along=choices.pick((None, None, 0, 1)),
        ),
        after=ends[1],
        block=choices.pick((3, 2, 1)),
    )


def tails() -> st.SearchStrategy[Tail]:
    return st.binary(min_size=SIZE + 2, max_size=SIZE + 2).map(tail)


class Tailed(brainstate.nn.Module):
    """One operation, its tail, and a state without products on its way."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.tail = tail
        shape = (INPUTS, tail.shape[-1]) if tail.product else tail.shape
        self.w = brainstate.ParamState(normal(rng, *shape))
        out = jax.eval_shape(tail.run, jax.ShapeDtypeStruct(tail.shape, float)).shape
        self.h = brainstate.HiddenState(normal(rng, *out))

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value) if self.tail.product else bt.element_wise(self.w.value)
        drive = self.tail.run(y) * (1.0 if self.tail.product else x)
        self.h.value = jnp.tanh(0.7 * self.h.value + drive)
        return self.h.value

    def data(self, steps: int) -> tuple[jax.Array, jax.Array]:
        rng, shape = np.random.default_rng(1), self.h.value.shape
        x = (self.tail.shape[0], INPUTS) if self.tail.product else shape
        return normal(rng, steps, *x), normal(rng, steps, *shape)
