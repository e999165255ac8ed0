# SPDX-License-Identifier: Apache-2.0
"""Products whose cost depends on how they are written."""

from __future__ import annotations

import jax
import jax.numpy as jnp

#: From how many times as many columns on, the wider array comes second.
WIDER = 2


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
    which XLA would write the product back.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace.plugin_api import sum_of_outer
    >>> sum_of_outer(jnp.ones((5, 4)), jnp.ones((5, 1))).shape
    (4, 1)
    """
    if x.shape[1] < WIDER * y.shape[1]:
        return jnp.matmul(x.T, y)
    return jax.lax.optimization_barrier(jnp.matmul(y.T, x)).T
