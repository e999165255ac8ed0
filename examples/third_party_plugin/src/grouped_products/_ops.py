# SPDX-License-Identifier: Apache-2.0
"""What users call: checks around the primitives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.plugin_api import bind

from ._primitives import DENDRITES, GROUPED_MM, GROUPED_MV


def grouped_matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Products of several groups side by side, trainable by eligibility traces.

    Parameters
    ----------
    x
        Input, [groups, in] for one example or [batch, groups, in].
    weight
        Weight, [groups, in, out].

    Returns
    -------
    jax.Array
        [groups, out] or [batch, groups, out].

    Raises
    ------
    TypeError
        When an argument is no floating-point array.
    ValueError
        When the shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from grouped_products import grouped_matmul
    >>> grouped_matmul(jnp.ones((5, 2, 3)), jnp.ones((2, 3, 4))).shape
    (5, 2, 4)
    """
    _check_arrays("grouped_matmul", x=x, weight=weight)
    if x.ndim not in (2, 3) or weight.ndim != 3 or x.shape[-2:] != weight.shape[:2]:
        raise ValueError(
            "grouped_matmul: x must have shape [groups, in] or [batch, groups, in] and weight "
            f"[groups, in, out], got {x.shape} and {weight.shape}"
        )
    return bind(GROUPED_MV if x.ndim == 2 else GROUPED_MM, x, weight)


def dendrites(x: jax.Array, branches: jax.Array, gains: jax.Array) -> jax.Array:
    """Neurons with nonlinear branches, ``sum_k gains_k tanh(x branches_k)``, trainable likewise.

    Parameters
    ----------
    x
        Input, [in] for one example or [batch, in].
    branches
        Weight of each branch, [in, branches, out].
    gains
        Strength of each branch, [branches, out].

    Returns
    -------
    jax.Array
        [out] or [batch, out].

    Raises
    ------
    TypeError
        When an argument is no floating-point array.
    ValueError
        When the shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from grouped_products import dendrites
    >>> dendrites(jnp.ones((5, 3)), jnp.ones((3, 2, 4)), jnp.ones((2, 4))).shape
    (5, 4)
    """
    _check_arrays("dendrites", x=x, branches=branches, gains=gains)
    expected = (x.shape[-1], *gains.shape) if x.ndim in (1, 2) else None
    if gains.ndim != 2 or branches.shape != expected:
        raise ValueError(
            "dendrites: x must have shape [in] or [batch, in], branches [in, branches, out] and "
            f"gains [branches, out], got {x.shape}, {branches.shape} and {gains.shape}"
        )
    if x.ndim == 2:
        return jax.vmap(lambda one: bind(DENDRITES, one, branches, gains))(x)
    return bind(DENDRITES, x, branches, gains)


def _check_arrays(op: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if not isinstance(value, (jax.Array, np.ndarray)):
            raise TypeError(f"{op}: {name} must be an array, got {type(value).__name__}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{op}: {name} must be a floating-point array, got {value.dtype}")
