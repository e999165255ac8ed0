# SPDX-License-Identifier: Apache-2.0
"""The trace of an operation without rules: an entry for each position of y and parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...base.precision import widened_dtype
from ..operation import Arrays
from .base import TraceRules, sum_over_steps


class DenseTrace(TraceRules):
    """Leaves are [S, *E, *Y, *W]: the derivative of every state of every position.

    ``eps[s, p, w] = d h[p, s] / d w``, with ``d y[p] / d w`` from the Jacobian of ``impl``. Exact
    for every operation; memory and time grow with positions times parameters.
    """

    @property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        op = self.operation
        head = (self.num_state, *self.extra, *op.y_aval.shape)
        weights = {key: op.operand_avals[op.positions[key]] for key in op.traced}
        dtype = widened_dtype(op.y_aval.dtype, op.wide)
        return {
            key: jax.ShapeDtypeStruct((*head, *weight.shape), dtype)
            for key, weight in weights.items()
        }

    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        return lambda factor, trace: {
            key: _outer(factor, leaf, leaf.ndim - factor.ndim) for key, leaf in trace.items()
        }

    def _jacobian(self, x: Any, operands: Sequence[Any]) -> Arrays:
        """``d y / d w`` [*Y, *W] of one step, example by example when batched."""
        op = self.operation
        weights = op.weights(operands)

        def of_weights(x_one: Any) -> Arrays:
            return jax.jacrev(lambda w: op.run(x_one, w, operands))(weights)

        if not op.spec.batched:
            return of_weights(x)
        single = jax.vmap(lambda x_b: of_weights(x_b[None]))(x)
        return {key: value[:, 0] for key, value in single.items()}

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        op, ndim = self.operation, len(self.operation.y_aval.shape)
        x, f, operands = op.widened((x, f, [*operands]))

        def one_step(x_k: Any, f_k: jax.Array) -> Arrays:
            found = self._jacobian(x_k, operands)
            return {key: _outer(f_k, found[key], found[key].ndim - ndim) for key in op.traced}

        return one_step(None, f.sum(0)) if x is None else sum_over_steps(one_step, x, f)

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        axes, signal = tuple(range(signal.ndim)), self.operation.widened(signal)
        return {key: jnp.tensordot(signal, leaf, (axes, axes)) for key, leaf in trace.items()}


def _outer(factor: jax.Array, array: jax.Array, weight_ndim: int) -> jax.Array:
    """[.., *Y] times [.., *Y, *W]."""
    return factor.reshape(*factor.shape, *(1,) * weight_ndim) * array
