# SPDX-License-Identifier: Apache-2.0
"""Meshes, learners on them, and what is communicated in a compiled program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType

import braintrace as bt
from braintrace.base import versions
from tests.truth import table

BATCH = 8


class BelowALeak(brainstate.nn.Module):
    """A recurrent layer and a leaky readout, of which a filter carries the credit."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.readout = bt.nn.GRUCell(3, 4, key=0), bt.nn.Linear(4, 4, key=1)

    def init_state(self, batch_size: int) -> None:
        self.y = brainstate.HiddenState(jnp.zeros((batch_size, 4)))

    def update(self, x: Any) -> Any:
        self.y.value = 0.8 * self.y.value + self.readout(self.cell(x))
        return self.y.value


class Shown(brainstate.nn.Module):
    """A cell, and a readout whose parameters are not all operands of products."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.cell, self.readout = bt.nn.GRUCell(inputs, units), brainstate.nn.Linear(units, 4)
        self.gain = brainstate.ParamState(jnp.ones(units, brainstate.environ.dftype()))

    def update(self, x: Any) -> Any:
        return self.readout(self.cell(x) * self.gain.value)


class Twice(brainstate.nn.Module):
    """A weight in two operations, one of them in a loop, and in the output."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.first = bt.nn.Linear(inputs, units, key=0)
        self.w = brainstate.ParamState(0.1 * jnp.eye(units, dtype=brainstate.environ.dftype()))

    def init_state(self, batch_size: int) -> None:
        dtype = brainstate.environ.dftype()
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, len(self.w.value)), dtype))

    def update(self, x: Any) -> Any:
        w, y = self.w.value, self.first(x)
        y = jax.lax.fori_loop(0, 2, lambda i, y: y + bt.matmul(jnp.tanh(y), w), y)
        self.h.value = jnp.tanh(y + 0.5 * bt.matmul(self.h.value, w))
        return self.h.value @ w


def mesh(kind: str, *shape: int) -> Any:
    """A mesh of ``shape``: axes ``data`` and, if there is a second one, ``model``."""
    axes = ("data", "model")[: len(shape)]
    types = (getattr(AxisType, kind),) * len(shape)
    devices = jax.devices()[: prod(shape)]
    return jax.make_mesh(shape, axes, axis_types=types, devices=devices)


@contextmanager
def prepared(case: table.Case, on: Any = None, units: bool = True) -> Iterator[table.Job]:
    """A job of the table with eight examples, on one device or divided among those of a mesh."""
    before, table.BATCH = table.BATCH, BATCH
    try:
        job = table.prepared(case)
    finally:
        table.BATCH = before
    if on is None:
        yield job
        return
    both = units and "model" in on.axis_names
    job.learner.shard(on, batch="data", units="model" if both else None)
    with jax.set_mesh(on):
        place = jax.NamedSharding(on, jax.P(None, "data"))
        xs, ys = (versions.put(v, place) for v in (job.xs, job.ys))
        yield replace(job, xs=xs, ys=ys)


def run(case: table.Case, on: Any = None, units: bool = True) -> Any:
    """What a case computes, as arrays of numpy."""
    with prepared(case, on, units) as job:
        return jax.tree.map(whole, table.DRIVERS[case.driver](job)())


def whole(array: Any) -> Any:
    """An array of numpy with all parts, also those in other processes."""
    shared = isinstance(array, jax.Array) and not array.is_fully_replicated
    if shared and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


class Collective(NamedTuple):
    """An operation in which devices communicate: its kind, numbers of bytes, whether in a loop."""

    kind: str
    sizes: tuple[int, ...]
    loop: str


_KINDS = "all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
_BYTES = {"f64": 8, "f32": 4, "s64": 8, "s32": 4, "u64": 8, "u32": 4, "pred": 1}


def collectives(compiled: Any) -> list[Collective]:
    """Those of a compiled program; ``loop`` is the body of the ``while`` that they are in."""
    text, found, inside = compiled.as_text(), [], ""
    bodies = {*re.findall(r"body=%?([\w.\-]+)", text)}
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{\s*$", line):
            inside = head[1]
        if one := re.search(rf"= (\(.*?\)|\S+) ({_KINDS})(?:-start)?\(", line):
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", one[1])
            sizes = (_BYTES[t] * prod(int(n) for n in dims.split(",") if n) for t, dims in arrays)
            found.append(Collective(one[2], tuple(sizes), inside if inside in bodies else ""))
    return found


def compiled(function: Any, *args: Any) -> Any:
    """A function of arguments and states, compiled for where these lie."""
    return brainstate.transform.jit(function).lower(*args).compile()
