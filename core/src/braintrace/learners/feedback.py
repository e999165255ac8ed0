# SPDX-License-Identifier: Apache-2.0
"""An error that is fed back to an output through a fixed random matrix."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions


def feedback_matrix(seed: Any, out: Any, error: Any) -> jax.Array:
    """A fixed matrix [m, n] for an output [.., n] and an error [.., m], of variance ``1 / m``.

    Raises
    ------
    TypeError, ValueError
        When the output is not one floating-point array, or the axes in front differ.
    """
    if len(jax.tree.leaves(out)) != 1 or not versions.is_float(jnp.asarray(out)):
        raise TypeError(
            "an error is fed back to a model that returns one floating-point array; this one "
            f"returns {jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), out)}"
        )
    shapes = jnp.shape(out), jnp.shape(error)
    if any(len(s) == 0 for s in shapes) or shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(
            f"error has shape {shapes[1]} and the model's output {shapes[0]}; they must be [.., m] "
            "and [.., n] with the same axes in front"
        )
    rows, columns = shapes[1][-1], shapes[0][-1]
    key = jax.random.fold_in(versions.random_bits_of(seed), rows)
    return jax.random.normal(key, (rows, columns), jnp.result_type(out)) / math.sqrt(rows)


@jax.custom_vjp
def feed_back(out: jax.Array, error: jax.Array, matrix: jax.Array) -> jax.Array:
    """``out``, whose cotangent is ``error @ matrix`` whatever the loss is."""
    return out


def _keep(out: jax.Array, error: jax.Array, matrix: jax.Array) -> Any:
    return out, (error, matrix)


def _fed_back(kept: Any, _: jax.Array) -> Any:
    error, matrix = kept
    fed = (jnp.asarray(error) @ matrix).astype(matrix.dtype)
    return fed, jax.tree.map(versions.zero_cotangent, error), jnp.zeros_like(matrix)


feed_back.defvjp(_keep, _fed_back)
