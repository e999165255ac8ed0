# SPDX-License-Identifier: Apache-2.0
"""The trace of an operation whose weights change from step to step: that of the whole weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..moving import Made, MovingSpec
from ..operation import Arrays
from .base import TraceRules, sum_over_steps


@dataclass(eq=False)
class MovingTrace(TraceRules):
    """A trace in the structure of the operation, whose rules are ``one``, with further axes.

    A leaf [S, *E, .., *W] of the operation is [S, *E, .., *N, *W] here, with ``N`` the leading axes
    that a weight has more than what is made of it. The axes ``W`` may be in another order, and with
    others in between (``Made.axes``).
    """

    one: TraceRules

    @property
    def spec(self) -> MovingSpec:
        """The specification of the operation."""
        return self.operation.spec  # type: ignore[return-value]

    @property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        found = dict(self.one.types)
        for key, (extra, tail) in self._longer.items():
            shape, at = found[key].shape, len(found[key].shape) - tail
            longer = (*shape[:at], *extra, *shape[at:])
            found[key] = jax.ShapeDtypeStruct(longer, found[key].dtype)
        return found

    @property
    def _made(self) -> dict[str, Made]:
        """How the traced operands that move are made, by key."""
        places = {key: self.operation.positions[key] for key in self.operation.traced}
        return {key: self.spec.made[k] for key, k in places.items() if k in self.spec.made}

    @property
    def _longer(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Axes ``N``, and how many axes stand behind them, of the keys with such axes."""
        return {key: (m.extra, _tail(m)) for key, m in self._made.items() if m.extra}

    def of_states(self, num_state: int) -> Self:
        return replace(self, num_state=num_state, one=self.one.of_states(num_state))

    def _each(self, run: Callable[[Arrays], Arrays], trace: Arrays, solved: bool = False) -> Arrays:
        """``run`` for every index of the axes ``N``, which stand in front of the axes ``W``.

        What it gives is a trace, or ``solved``: cotangents of weights.
        """
        longer = self._longer
        rows = {key: _in_front(trace[key], *axes) for key, axes in longer.items()}
        first = {**trace, **{key: leaf[0] for key, leaf in rows.items()}}
        found = run(first)
        for key, (extra, tail) in longer.items():
            made = jax.vmap(lambda leaf, key=key: run({**first, key: leaf})[key])(rows[key])
            made = jnp.moveaxis(made, 0, at := 0 if solved else made.ndim - 1 - tail)
            found[key] = made.reshape(*made.shape[:at], *extra, *made.shape[at + 1 :])
        return found

    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        scale = self.one.scale(self._held(operands))
        return lambda factor, trace: self._each(lambda t: scale(factor, t), trace)

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        held = self._held(operands)
        return self._each(lambda t: self.one.solve(signal, t, held), trace, solved=True)

    def _held(self, operands: Sequence[Any]) -> list[Any]:
        """The operands of ``one`` as its rules get them where they may not use weights."""
        count = len(self.one.operation.operand_avals)
        return [None if k in self.spec.made else v for k, v in enumerate(operands[:count])]

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        made, positions = self._made, self.operation.positions
        operands = self.operation.widened([*operands])

        def step(x_k: jax.Array, f_k: jax.Array) -> Arrays:
            own, values = self.spec.unpacked(x_k)
            own = None if own is None else own[None]
            full = self.operation.widened(self.spec.operands(operands, values))
            found = self.one.increments(own, f_k[None], full)
            pulls = self.spec.pulled(operands, values)
            for key, one in made.items():
                slopes = pulls[positions[key]](jnp.ones(one.aval.shape))
                found[key] = _with_slopes(found[key], slopes, one)
            return found

        return sum_over_steps(step, x, f)


def _tail(made: Made) -> int:
    """From which axis of a leaf on, counted from its end, axes run along what is made."""
    return max((-axis for axis in made.along.values()), default=0)


def _with_slopes(leaf: jax.Array, slopes: jax.Array, made: Made) -> jax.Array:
    """A leaf [.., *W] times ``dg/dw`` [*N, *W], as [.., *N, *W].

    Entries of ``w`` keep their places in ``g(w, m)``, so that its derivative is a factor for each.
    """
    lead, at, shape = len(made.extra), leaf.ndim - _tail(made), made.aval.shape
    along = sorted(made.along, key=made.along.__getitem__)
    own = [1] * _tail(made)
    for axis in along:
        own[made.along[axis]] = shape[axis]
    others = [lead + k for k in range(len(shape)) if k - len(shape) not in along]  # of size one
    slopes = slopes.transpose(*range(lead), *others, *(slopes.ndim + axis for axis in along))
    rows = leaf.reshape(*leaf.shape[:at], *(1,) * lead, *leaf.shape[at:])
    return rows * slopes.reshape(*made.extra, *own).astype(leaf.dtype)


def _in_front(leaf: jax.Array, extra: tuple[int, ...], tail: int) -> jax.Array:
    """A leaf [.., *N, *W] as [N, .., *W]."""
    at = leaf.ndim - tail - len(extra)
    flat = leaf.reshape(*leaf.shape[:at], math.prod(extra), *leaf.shape[at + len(extra) :])
    return jnp.moveaxis(flat, at, 0)


@dataclass(eq=False)
class ExamplesTrace(TraceRules):
    """The trace of an operation whose weights move for each example by itself.

    Leaves are those of one example, whose rules are ``one``, as [S, B, ..].
    """

    one: TraceRules

    @property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        count = self.operation.y_aval.shape[0]

        def batched(aval: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((aval.shape[0], count, *aval.shape[1:]), aval.dtype)

        return {key: batched(aval) for key, aval in self.one.types.items()}

    def of_states(self, num_state: int) -> Self:
        return replace(self, num_state=num_state, one=self.one.of_states(num_state))

    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        return jax.vmap(self.one.scale(operands), in_axes=(len(self.extra), 0))

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        def each(x: Any, f: jax.Array) -> Arrays:
            return self.one.increments(x, f, operands)

        return jax.vmap(each, in_axes=(1, 2 + len(self.extra)), out_axes=1)(x, f)

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        def each(signal: jax.Array, trace: Arrays) -> Arrays:
            return self.one.solve(signal, trace, operands)

        found = jax.vmap(each, in_axes=(1 + len(self.extra), 1))(signal, trace)
        return {key: leaf.sum(0) for key, leaf in found.items()}
