# SPDX-License-Identifier: Apache-2.0
"""What the values of a random cell may be made by.

Functions that are handed to operations have names here, so that equal programs compile once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from tests.zoo import spike

WIDTH = 2

MASK = np.array([[1.0, 0.0], [1.0, 1.0]])
CONSTANT = np.array([[0.6, -0.3], [0.2, 0.5]])
ROW = np.array([0.5, -0.7])
MIX = np.array([[0.8, 0.1], [-0.2, 0.7]])


@jax.custom_vjp
def spike_vjp(v: Any) -> Any:
    return (v > 0.0).astype(v.dtype)


spike_vjp.defvjp(
    lambda v: (spike_vjp(v), v), lambda v, g: (g * 0.7 * jnp.maximum(0.0, 2.0 - jnp.abs(v)),)
)


@dataclass(frozen=True)
class Kind:
    """``run(*values, *leaves)``; ``leaves`` names the leaf of each parameter that it takes."""

    arity: int
    leaves: tuple[str, ...]
    run: Callable[..., Any]


def _leak(v: Any, b: Any) -> Any:
    return bt.element_wise(b, jax.nn.sigmoid) * v


def _gate(a: Any, b: Any, c: Any) -> Any:
    open_ = jax.nn.sigmoid(a)
    return open_ * b + (1.0 - open_) * c


def _gates(v: Any, c: Any, w: Any) -> Any:
    """An LSTM's four gates from one product."""
    i, f, g, o = jnp.split(bt.matmul(v, w), 4, axis=-1)
    new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(new)


def _row(v: Any, w: Any) -> Any:
    """The output of an operation on a constant, the same for every example."""
    return v + bt.matmul(ROW, w)


def _mapped(v: Any, w: Any, b: Any) -> Any:
    def one(v: Any) -> Any:
        return bt.matmul(v, w, b)

    return one(v) if v.ndim == 1 else jax.vmap(one)(v)


def _through_weights(v: Any, b: Any, w: Any) -> Any:
    """A product whose input is a parameter."""
    return v + bt.matmul(jnp.broadcast_to(b, v.shape), w)


def _norm(v: Any) -> Any:
    centred = v - v.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 0.5)


def _fold(v: Any, a: Any, w: Any) -> Any:
    """One product for two inputs at once, folded into the batch."""
    both = jnp.stack([v, a])
    out = bt.matmul(both.reshape(-1, WIDTH), w).reshape(both.shape)
    return out[0] - 0.5 * out[1]


def _there_and_back(v: Any) -> Any:
    return jnp.sin(v.reshape(-1, WIDTH).T).T.reshape(v.shape)


_MATRIX, _VECTOR = ("matrix",), ("vector",)

_POSITION_WISE = {
    "product": Kind(1, _MATRIX, bt.matmul),
    "affine": Kind(1, ("matrix", "vector"), bt.matmul),
    "tanh": Kind(1, (), jnp.tanh),
    "add": Kind(2, (), jnp.add),
    "multiply": Kind(2, (), jnp.multiply),
    "gate": Kind(3, (), _gate),
    "leak": Kind(1, _VECTOR, _leak),
    "sin": Kind(1, (), jnp.sin),
    "subtract": Kind(2, (), jnp.subtract),
    "half": Kind(1, (), lambda v: 0.5 * v),
    "complement": Kind(1, (), lambda v: 1.0 - v),
    "maximum": Kind(2, (), jnp.maximum),
    "select": Kind(3, (), lambda a, b, c: jnp.where(a > 0.1, b, c)),
    "stop": Kind(1, (), jax.lax.stop_gradient),
    "spike": Kind(1, (), spike),
    "spike vjp": Kind(1, (), spike_vjp),
    "offset": Kind(1, _VECTOR, lambda v, b: v + bt.element_wise(b)),
    "scalar leak": Kind(1, _VECTOR, lambda v, b: bt.element_wise(b[0], jnp.tanh) * v),
    "through": Kind(1, (), lambda v: bt.element_wise(v, jnp.tanh)),
    "constant product": Kind(1, (), lambda v: bt.matmul(v, CONSTANT)),
    "constant leak": Kind(1, (), lambda v: bt.element_wise(0.7) * v),
    "absolute product": Kind(1, _MATRIX, lambda v, w: bt.matmul(v, w, weight_fn=jnp.abs)),
    "row": Kind(1, _MATRIX, _row),
    "mapped": Kind(1, ("matrix", "vector"), _mapped),
    "through weights": Kind(1, ("vector", "matrix"), _through_weights),
    "plain bias": Kind(1, _VECTOR, jnp.add),
    "plain factor": Kind(1, _MATRIX, lambda v, w: v * w.sum()),
}

_MIXING = {
    "gates": Kind(2, ("wide",), _gates),
    "roll": Kind(1, (), lambda v: jnp.roll(v, 1, -1)),
    "flip": Kind(1, (), lambda v: jnp.flip(v, -1)),
    "centre": Kind(1, (), lambda v: v - v.mean(-1, keepdims=True)),
    "norm": Kind(1, (), _norm),
    "dense": Kind(1, (), lambda v: v @ CONSTANT),
    "plain product": Kind(1, _MATRIX, jnp.matmul),
    "fold": Kind(2, _MATRIX, _fold),
    "there and back": Kind(1, (), _there_and_back),
    "batch mean": Kind(1, (), lambda v: v - v.reshape(-1, WIDTH).mean(0)),
    "cond": Kind(2, (), lambda v, a: jax.lax.cond(a.sum() > 0.0, jnp.tanh, jnp.sin, v)),
    "loop": Kind(1, (), lambda v: jax.lax.fori_loop(0, 2, lambda k, v: 0.9 * jnp.tanh(v), v)),
    "swap": Kind(2, (), lambda a, b: jnp.concatenate([a[..., 1:], b[..., :1]], -1)),
}

KINDS: dict[str, Kind] = {**_POSITION_WISE, **_MIXING}
POSITION_WISE, MIXING = tuple(_POSITION_WISE), tuple(_MIXING)


def _processes() -> dict[str, Callable[[Any, Any], Any]]:
    """Of a leaf and of the same leaf of the next parameter."""
    return {
        "as it is": lambda w, other: w,
        "absolute": lambda w, other: jnp.abs(w),
        "masked": lambda w, other: w * (MASK if w.shape == MASK.shape else 0.5),
        "summed": lambda w, other: w + jnp.tanh(other),
        "normalised": lambda w, other: w / jnp.sqrt(1.0 + (w**2).sum()),
        "frozen": lambda w, other: jax.lax.stop_gradient(w),
        "operated": lambda w, other: w * bt.element_wise(other, jnp.tanh),
        "half frozen": lambda w, other: w * jax.lax.stop_gradient(w),
    }


PROCESS = _processes()
PROCESSES = ("as it is",) * 5 + tuple(PROCESS)[1:]

#: New value of a state from its old one, two values read, and a vector of parameters.
KEEP: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "leaky": lambda old, v, u, b: 0.8 * old + v,
    "value": lambda old, v, u, b: v,
    "both": lambda old, v, u, b: 0.6 * old + v - 0.4 * u,
    "learned": lambda old, v, u, b: _leak(old, b) + v,
    "sine": lambda old, v, u, b: jnp.sin(old) + v,
    "gated": lambda old, v, u, b: jax.nn.sigmoid(u) * old + v,
}
KEEPS = ("leaky", "both", "gated", *KEEP)
