# SPDX-License-Identifier: Apache-2.0
"""The operation ``embedding``: checks and units around its primitives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import saiunit

from braintrace.plugin_api import ArrayLike, ParameterFn, bind, processed, real_array, with_unit

from ._primitives import ETP_EMBEDDING, ETP_EMBEDDING_BATCHED

#: How many rows of an example a trace holds at most, unless told.
ROWS = 256


def embedding(
    indices: ArrayLike,
    weight: ArrayLike,
    *,
    weight_fn: ParameterFn | None = None,
    rows: int | None = None,
    overflow: str = "error",
) -> jax.Array | saiunit.Quantity:
    """Rows of a table, ``weight_fn(weight)[indices]``, trainable by eligibility traces.

    Parameters
    ----------
    indices
        Integers of any shape, from ``-V`` to below ``V``; a number for a single example. Others
        count as the nearest.
    weight
        The table, ``[V, *features]`` after ``weight_fn``.
    weight_fn
        Function of the parameter alone, applied before the operation. Of a parameter with a unit
        it gets the numbers, and the unit stays.
    rows
        How many different rows of one example its trace holds at most, between two resets; ``None``
        for 256, or ``V`` if that is less.
    overflow
        What happens when there are more: with ``'error'`` the trace of that example is not a number
        from there on, and so are gradients, which ``check=True`` reports together with these
        options; with ``'forget'`` the row that was read longest ago is forgotten, and
        ``learner.get_etrace_of`` counts these (``'lost'``).

    Returns
    -------
    jax.Array or saiunit.Quantity
        ``[*indices.shape, *features]`` in the dtype and unit of ``weight``.

    Raises
    ------
    TypeError
        When ``indices`` are no integers, or ``weight`` is no array of a real floating-point dtype.
    ValueError
        When the table has no rows, ``rows`` is not positive, or ``overflow`` is none of both.

    Notes
    -----
    The trace of an example holds the rows that it has read since the last reset,
    ``[rows, *features]`` for each state, and not the table. Within ``rows`` it is exact. Each entry
    of ``indices`` is an example to it: the indices [batch, words] of one step have a trace each.

    pp_prop cannot filter indices: use it with a filter for the outputs alone, or
    ``braintrace.matmul(jax.nn.one_hot(indices, V), weight)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> braintrace.embedding(jnp.array([[2, 0]]), jnp.arange(6.0).reshape(3, 2)).tolist()
    [[[4.0, 5.0], [0.0, 1.0]]]
    """
    index = _integers(indices)
    value, unit = real_array(
        "embedding", "weight", processed("embedding", "weight_fn", weight_fn, weight)
    )
    if value.ndim == 0 or value.shape[0] == 0:
        raise ValueError(f"embedding: weight must have a row at least, got shape {value.shape}")
    count = value.shape[0]
    kept = min(count, ROWS) if rows is None else min(count, _capacity(rows))
    if overflow not in ("error", "forget"):
        raise ValueError(f"embedding: overflow must be 'error' or 'forget', got {overflow!r}")
    index = jnp.clip(jnp.where(index < 0, index + count, index), 0, count - 1)
    spec = ETP_EMBEDDING_BATCHED if index.ndim else ETP_EMBEDDING
    flat = index.reshape(-1) if index.ndim > 1 else index
    y = bind(spec, flat, value, rows=kept, forget=overflow == "forget")
    return with_unit(y.reshape(*index.shape, *value.shape[1:]) if index.ndim > 1 else y, unit)


def _integers(indices: ArrayLike) -> jax.Array:
    if isinstance(indices, saiunit.Quantity) or not hasattr(indices, "dtype"):
        indices = np.asarray(indices) if isinstance(indices, (int, list, tuple)) else indices
    dtype = getattr(indices, "dtype", None)
    if (
        isinstance(indices, saiunit.Quantity)
        or dtype is None
        or not jnp.issubdtype(dtype, jnp.integer)
    ):
        what = type(indices).__name__ if dtype is None else f"{type(indices).__name__} of {dtype}"
        raise TypeError(f"embedding: indices must be integers, got {what}")
    return jnp.asarray(indices).astype(jnp.int32)


def _capacity(rows: int) -> int:
    if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
        raise ValueError(f"embedding: rows must be a positive integer, got {rows!r}")
    return int(rows)
