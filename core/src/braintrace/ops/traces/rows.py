# SPDX-License-Identifier: Apache-2.0
"""The trace of an operation that reads one row of its weight: that of the rows that were read.

Of a table [V, *W], an example has read few rows since the last reset, and the others have a trace
of zero. Kept are at most ``R`` rows of each example, with their places in the table::

    eps[b, r, *w] = d h[b, *w] / d weight[rows[b, r], *w]

A step costs the same whatever ``V`` is. What is read when all ``R`` places are taken has no room:
then the trace of that example is not a number from there on, or, where the operation says so, the
row that was read longest ago is forgotten, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ...base.precision import widened_dtype
from ..operation import Arrays
from ..spec import Rows
from .bands import Bands
from .base import TraceRules

#: Leaves besides the values: places in the table from 1 on (0: free), steps since a row was read,
#: and how many rows found no room.
ROWS, AGE, LOST = "rows", "age", "lost"


class RowsTrace(TraceRules):
    """Values are [S, *B, R, *W]; every other leaf has the axes of states and examples, too."""

    @property
    def key(self) -> str:
        """The key of the weight, the only one with a trace."""
        (key,) = self.operation.traced
        return key

    @cached_property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        op, states = self.operation, self.num_state
        own = op.initial_types("init_drtrl", states)[self.key]
        examples = own.shape[:1] if op.spec.batched else ()
        rows, lost = (states, *examples, own.shape[len(examples)]), (states, *examples)
        integers = {ROWS: rows, AGE: rows, LOST: lost}
        return {
            self.key: jax.ShapeDtypeStruct(
                (states, *own.shape[:-1]), widened_dtype(own.dtype, op.wide)
            ),
            **{key: jax.ShapeDtypeStruct(v, jnp.dtype("int32")) for key, v in integers.items()},
        }

    @property
    def options(self) -> str:
        return self._room.options

    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        rule = self.operation.written("yw_to_w", self.operation.widened([*operands]))
        return lambda factor, trace: {**trace, **rule(factor, {self.key: trace[self.key]})}

    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        values = {self.key: trace[self.key]}
        return {**trace, **super().propagate(transition, values, operands)}

    def propagate_by_bands(
        self, transition: Bands, trace: Arrays, x: Any, f: Any, operands: Sequence[Any]
    ) -> Arrays:
        values = {self.key: trace[self.key]}
        kept = {**trace, **super().propagate_by_bands(transition, values, None, None, operands)}
        return kept if f is None else self.joined(kept, self.increments(x[None], f[None], operands))

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """Of ``K`` steps: one row for each step, in their order."""
        own = self.operation.written("rows_drtrl", operands)
        read = jnp.moveaxis(jax.vmap(lambda x: own(x).indices)(x), 0, -1).astype(jnp.int32)
        count = self.operation.cotangent_type(self.key).shape[0]
        rows = jnp.clip(jnp.where(read < 0, read + count, read), 0, count - 1) + 1
        values = jnp.moveaxis(self.operation.widened(f), 0, 1 + rows.ndim - 1)
        rows = jnp.broadcast_to(rows, (self.num_state, *rows.shape))
        lost = jnp.zeros(rows.shape[:-1], jnp.int32)
        return {self.key: values, ROWS: rows, AGE: jnp.zeros_like(rows), LOST: lost}

    def plus(self, trace: Arrays, other: Arrays | None) -> Arrays:
        """Of the same steps, so that rows have the same places."""
        return trace if other is None else {**trace, self.key: trace[self.key] + other[self.key]}

    def spread(self, trace: Arrays, places: Any) -> Arrays:
        """All states have the same rows."""
        values = super().spread({self.key: trace[self.key]}, places)
        others = (key for key in trace if key != self.key)
        return {
            **values,
            **{
                k: jnp.broadcast_to(trace[k][0], (self.num_state, *trace[k].shape[1:]))
                for k in others
            },
        }

    def joined(self, kept: Arrays | None, new: Arrays) -> Arrays:
        """The rows of the steps in ``new`` added to those that are kept, in their order."""
        kept = self.init() if kept is None else kept
        forget = self._room.forget

        def one(kept: Arrays, new: Arrays) -> Arrays:
            return _joined(kept, new, self.key, forget)

        return (jax.vmap(one, (1, 1), 1) if self.operation.spec.batched else one)(kept, new)

    @property
    def _room(self) -> Rows:
        """What the operation says of any input."""
        nothing = [None] * len(self.operation.operand_avals)
        x: Any = self.operation.x_aval
        return self.operation.written("rows_drtrl", nothing)(jnp.zeros_like(x))

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        own = {self.key: trace[self.key]}
        found = self.sum_over_states(self.scale(operands), self.operation.widened(signal), own)
        weight = self.operation.cotangent_type(self.key)
        count, rows = weight.shape[0], trace[ROWS][0].reshape(-1)
        values = found[self.key].reshape(-1, *weight.shape[1:])
        places = jnp.where(rows > 0, rows - 1, count)  # free ones lie behind the table
        table = jnp.zeros(weight.shape, values.dtype)
        return {self.key: table.at[places].add(values, mode="drop")}


def _joined(kept: Arrays, new: Arrays, key: str, forget: bool) -> Arrays:
    """For one example: ``kept`` [S, R, ..] and the rows of steps ``new`` [S, K, ..]."""
    number = jnp.arange(kept[ROWS].shape[-1])

    def read(carried: Any, row: jax.Array) -> tuple[Any, Any]:
        rows, age, lost = carried
        known, free = rows == row, rows == 0
        full = ~known.any() & ~free.any()
        place = jnp.where(full, jnp.argmax(age), jnp.argmax(jnp.where(known.any(), known, free)))
        here = number == place
        age = jnp.minimum(age, jnp.iinfo(age.dtype).max - 1) + 1
        carried = jnp.where(here, row, rows), jnp.where(here, 0, age), lost + full
        return carried, (place, full)

    start = kept[ROWS][0], kept[AGE][0], kept[LOST][0]
    (rows, age, lost), (places, full) = jax.lax.scan(read, start, new[ROWS][0])
    steps = jnp.arange(places.size)
    taken = jnp.full(number.shape, -1).at[places].max(jnp.where(full, steps, -1))
    values, added = kept[key], new[key]
    stays = (taken < 0).reshape(-1, *(1,) * (values.ndim - 2))
    counts = (steps >= taken[places]).reshape(-1, *(1,) * (added.ndim - 2))
    values = jnp.where(stays, values, 0).astype(added.dtype)
    values = values.at[:, places].add(jnp.where(counts, added, 0))
    if not forget:
        values = jnp.where(lost > 0, jnp.nan, values)
    states = len(values)
    same = {ROWS: rows, AGE: age, LOST: lost}
    return {key: values, **{k: jnp.broadcast_to(v, (states, *v.shape)) for k, v in same.items()}}
