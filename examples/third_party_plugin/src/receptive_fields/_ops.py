# SPDX-License-Identifier: Apache-2.0
"""What users call: checks around the primitives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.plugin_api import bind

from ._primitives import DENDRITES, FIELDS, FIELDS_BATCHED


def receptive_fields(x: jax.Array, centres: jax.Array, widths: jax.Array) -> jax.Array:
    """A population code whose tuning curves are trained by eligibility traces.

    ``y[i, k] = exp(-((x[i] - centres[i, k]) / widths[i, k])**2 / 2)``

    Parameters
    ----------
    x
        Values to encode, [in] for one example or [batch, in].
    centres, widths
        Where each field is, and how wide: [in, fields]. No width is zero.

    Returns
    -------
    jax.Array
        [in, fields] or [batch, in, fields].

    Raises
    ------
    TypeError
        When an argument is no floating-point array.
    ValueError
        When the shapes do not fit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from receptive_fields import receptive_fields
    >>> centres = jnp.array([[-1.0, 0.0, 1.0]])
    >>> receptive_fields(jnp.zeros((5, 1)), centres, jnp.ones((1, 3))).shape
    (5, 1, 3)
    """
    _check_arrays("receptive_fields", x=x, centres=centres, widths=widths)
    expected = x.shape[-1:] if x.ndim in (1, 2) else None
    if centres.ndim != 2 or centres.shape[:1] != expected or widths.shape != centres.shape:
        raise ValueError(
            "receptive_fields: x must have shape [in] or [batch, in], centres and widths "
            f"[in, fields], got {x.shape}, {centres.shape} and {widths.shape}"
        )
    return bind(FIELDS if x.ndim == 1 else FIELDS_BATCHED, x, centres, widths)


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
    >>> from receptive_fields import dendrites
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
