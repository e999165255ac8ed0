# SPDX-License-Identifier: Apache-2.0
"""The recurrent layers that are measured, in two makes: traced ones, and brainstate's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared.neurons import LIF, spike
from jax.experimental.sparse import BCOO

import braintrace

Shape = tuple[int, ...]
SIDE = 16  # rows and columns of an image
KERNEL = 3
DENSITY = 0.1
RANK = 8
GROUPS = 8


@dataclass(frozen=True)
class Make:
    """Where layers come from: ``nn`` with those of brainstate's names, and the operations."""

    nn: Any
    sparse: Callable[[jax.Array, jax.Array, Any], Any]
    low_rank: Callable[[jax.Array, jax.Array, jax.Array], Any]
    grouped: Callable[[jax.Array, jax.Array], Any]
    row: Callable[[jax.Array, jax.Array], Any]


def _traced_sparse(x: jax.Array, data: jax.Array, matrix: Any) -> Any:
    return braintrace.sparse_matmul(x, data, sparse_mat=matrix)


def _traced_low_rank(x: jax.Array, b: jax.Array, a: jax.Array) -> Any:
    return braintrace.lora_matmul(x, b, a)


def _traced_grouped(x: jax.Array, weight: jax.Array) -> Any:
    return braintrace.grouped_matmul(x, weight)


def _traced_row(indices: jax.Array, table: jax.Array) -> Any:
    return braintrace.embedding(indices, table)


TRACED = Make(braintrace.nn, _traced_sparse, _traced_low_rank, _traced_grouped, _traced_row)


def _plain_sparse(x: jax.Array, data: jax.Array, matrix: Any) -> Any:
    """By JAX's BCOO: its CSR, with which ``brainstate.nn.SparseLinear`` works, has a wrong
    derivative with respect to the values for a product from the left."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(np.asarray(matrix.indptr)))
    pairs = np.stack([rows, np.asarray(matrix.indices)], 1)
    return x @ BCOO((data, jnp.asarray(pairs)), shape=matrix.shape)


PLAIN = Make(
    brainstate.nn,
    _plain_sparse,
    lambda x, b, a: (x @ b) @ a,
    lambda x, weight: jnp.einsum("bgi,gio->bgo", x, weight),
    lambda indices, table: table[indices],
)


def sparse_matrix(num_in: int, num_out: int) -> Any:
    """A random matrix of the given density; the peer knows those of brainevent only."""
    try:
        version("braintrace")  # the distribution of the peer
        package = import_module("brainevent")
    except PackageNotFoundError:
        package = import_module("saiunit.sparse")
    rng = np.random.default_rng(2)
    rows = [np.sort(rng.choice(num_out, _per_row(num_out), replace=False)) for _ in range(num_in)]
    starts = np.arange(num_in + 1) * _per_row(num_out)
    data = jnp.ones(num_in * _per_row(num_out), "float32")
    indices = jnp.asarray(np.concatenate(rows), "int32")
    return package.CSR((data, indices, jnp.asarray(starts, "int32")), shape=(num_in, num_out))


def _per_row(num_out: int) -> int:
    return max(1, round(DENSITY * num_out))


class Sparse(brainstate.nn.Module):
    """Product with a sparse matrix of trained values: [B, units] to [B, units]."""

    def __init__(self, make: Make, units: int) -> None:
        super().__init__()
        self.product, self.matrix = make.sparse, sparse_matrix(units, units)
        self.weight = brainstate.ParamState(self.matrix.data)

    def update(self, x: jax.Array) -> jax.Array:
        return self.product(x, self.weight.value, self.matrix)


class LowRank(brainstate.nn.Module):
    """Product with two trained factors of rank 8: [B, units] to [B, units]."""

    def __init__(self, make: Make, units: int) -> None:
        super().__init__()
        self.product = make.low_rank
        factors = {"b": jnp.zeros((units, RANK)), "a": jnp.zeros((RANK, units))}
        self.weight = brainstate.ParamState(factors)

    def update(self, x: jax.Array) -> jax.Array:
        factors: Any = self.weight.value
        return self.product(x, factors["b"], factors["a"])


class Grouped(brainstate.nn.Module):
    """A product for each of eight groups: [B, inputs] or [B, 8, inputs / 8] to [B, 8, units / 8].

    The states it drives have that shape, too: of a result that is reshaped in between, the peer
    gives the weight a gradient of zero, and there would be nothing to compare.
    """

    def __init__(self, make: Make, inputs: int, units: int) -> None:
        super().__init__()
        self.product = make.grouped
        shape = (GROUPS, inputs // GROUPS, units // GROUPS)
        self.weight = brainstate.ParamState(jnp.zeros(shape))

    def update(self, x: jax.Array) -> jax.Array:
        weight: Any = self.weight.value
        return self.product(x.reshape(len(x), GROUPS, -1), weight)


class Table(brainstate.nn.Module):
    """The row of a table that belongs to the largest input: [B, rows] to [B, units]."""

    def __init__(self, make: Make, rows: int, units: int) -> None:
        super().__init__()
        self.row = make.row
        self.weight = brainstate.ParamState(jnp.zeros((rows, units)))

    def update(self, x: jax.Array) -> jax.Array:
        weight: Any = self.weight.value
        return len(weight) ** 0.5 * self.row(jnp.argmax(x, -1), weight)  # weights are drawn small


class ALIF(LIF):
    """LIF with a threshold that rises with every spike: two hidden states."""

    a: brainstate.HiddenState
    kept = ("V", "a")
    strength, fading = 0.2, 0.98

    def spikes(self) -> jax.Array:
        return spike(self.V.value - 1.0 - self.strength * self.a.value)

    def update(self, x: jax.Array) -> jax.Array:
        fired = self.spikes()
        self.V.value = self.leak * self.V.value - fired + self.current(x, fired)
        self.a.value = self.fading * self.a.value + fired
        return self.spikes()


def gru(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return make.nn.GRUCell(num_in, units)


def lstm(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return make.nn.LSTMCell(num_in, units)


def lru(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return make.nn.LRUCell(num_in, units)


def lif(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return LIF((units,), make.nn.Linear(num_in, units), _recurrent(make, units))


def forward(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return LIF((units,), make.nn.Linear(num_in, units), jnp.zeros_like)


def alif(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return ALIF((units,), make.nn.Linear(num_in, units), _recurrent(make, units))


def sparse(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return LIF((units,), make.nn.Linear(num_in, units), Sparse(make, units))


def low_rank(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return LIF((units,), make.nn.Linear(num_in, units), LowRank(make, units))


def grouped(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    shape = (GROUPS, units // GROUPS)
    return LIF(shape, Grouped(make, num_in, units), Grouped(make, units, units))


def table(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    return LIF((units,), Table(make, num_in, units), jnp.zeros_like)


def conv(make: Make, num_in: int, units: int) -> brainstate.nn.Module:
    image = (SIDE, SIDE)
    feedforward = make.nn.Conv2d((*image, num_in), units, KERNEL)
    return LIF((*image, units), feedforward, make.nn.Conv2d((*image, units), units, KERNEL))


def _recurrent(make: Make, units: int) -> brainstate.nn.Module:
    return make.nn.Linear(units, units, b_init=None)


def fan_in(shape: Shape) -> int:
    """How many terms an output of a product with an array of this shape has."""
    return math.prod(shape[:-1])
