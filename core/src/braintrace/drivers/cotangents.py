# SPDX-License-Identifier: Apache-2.0
"""Sums of gradients, and results that may not be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..base.errors import NotSupportedError


def add_gradients(a: Any, b: Any) -> Any:
    """The sum of two cotangents of one leaf; integer leaves have none."""
    return a if jax.dtypes.float0 in (a.dtype, b.dtype) else jnp.add(a, b)


def add_traced(direct: Mapping[Any, Any], traced: Mapping[Any, Any]) -> dict[Any, Any]:
    """Cotangents of all parameters by path, to which those through traces are added."""
    return {
        path: jax.tree.map(add_gradients, value, traced[path]) if path in traced else value
        for path, value in direct.items()
    }


def end_of_sum(total: jax.Array, like: Any, scale: Any) -> jax.Array:
    """A sum of gradients, scaled, in the dtype of what it is the gradient of."""
    return (total * scale).astype(jnp.result_type(like))


def _refusing(message: str) -> Callable[[Any, Any], Any]:
    """``f(results, inputs) -> results``, which refuses to be differentiated."""

    @jax.custom_vjp
    def fixed(results: Any, inputs: Any) -> Any:
        return results

    def refuse(_: Any, cotangents: Any) -> Any:
        raise NotSupportedError(message)

    fixed.defvjp(lambda results, inputs: (results, None), refuse)
    return fixed


#: The ordinary derivative would leave out everything that is in the traces.
not_differentiable = _refusing(
    "the result of etrace_grad (its gradients and its losses) cannot be differentiated; "
    "differentiate a loss of learner(x), or use what etrace_grad returns as it is"
)

#: Traced operands are cut out of the step, and a second derivative would leave them out silently.
_first_order = _refusing(
    "the gradient of learner(x) cannot be differentiated again: it is an online gradient, and "
    "its derivative is not that of any loss. Take second derivatives of the model itself"
)


def guarded(gradients: Any, inputs: Any) -> Any:
    """``gradients``, of which those of integers (``float0``) are nothing to begin with."""
    return jax.tree.map(
        lambda g: g if g.dtype == jax.dtypes.float0 else _first_order(g, inputs), gradients
    )
