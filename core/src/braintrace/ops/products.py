# SPDX-License-Identifier: Apache-2.0
"""Products whose cost depends on how they are written."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..base.types import bytes_of

#: From how many times as many columns on, the wider array comes second.
WIDER = 2
#: The first array is turned by itself from so many rows on, below so many columns and bytes.
TURNED = 64, 512, 2**24


def sum_of_outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of the outer products of rows, ``sum_k x[k] y[k]^T``: a weight's gradient.

    Parameters
    ----------
    x, y
        Rows [K, m] and [K, n], of examples and steps.

    Returns
    -------
    jax.Array
        ``x^T y`` [m, n], in the dtype of the product.

    Notes
    -----
    XLA's CPU backend puts the first array in another order, entry by entry, and the second one row
    by row: with 512 and 10 columns, ``x^T y`` takes five times as long as ``y^T x``. The narrower
    array comes first here, and the result, which is small, is transposed behind a barrier, without
    which XLA would write the product back. The first array is transposed behind a barrier, too,
    while it is small enough for the caches: what transposes it takes less than the product saves, a
    tenth to a third of its time (a half in float64).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace.plugin_api import sum_of_outer
    >>> sum_of_outer(jnp.ones((5, 4)), jnp.ones((5, 1))).shape
    (4, 1)
    """
    if x.shape[1] < WIDER * y.shape[1]:
        return jnp.matmul(_turned(x), y)
    return jax.lax.optimization_barrier(jnp.matmul(_turned(y), x)).T


def _turned(x: jax.Array) -> jax.Array:
    rows, columns, most = TURNED
    small = x.shape[0] >= rows and x.shape[1] < columns and bytes_of([x]) <= most
    turn = jax.lax.optimization_barrier if small and jax.default_backend() == "cpu" else jnp.asarray
    return turn(x.T)
