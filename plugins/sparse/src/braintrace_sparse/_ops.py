# SPDX-License-Identifier: Apache-2.0
"""The operation ``sparse_matmul``: checks, units and dtypes around the sparse primitives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import saiunit

from braintrace.plugin_api import (
    ArrayLike,
    ParameterFn,
    bias_in_unit,
    bind,
    processed,
    real_array,
    with_unit,
)

from ._matrices import Entries, entries_of
from ._primitives import ETP_SP_MM, ETP_SP_MV

OP = "sparse_matmul"


def sparse_matmul(
    x: ArrayLike,
    weight_data: ArrayLike,
    *,
    sparse_mat: Any,
    bias: ArrayLike | None = None,
    weight_fn: ParameterFn | None = None,
    bias_fn: ParameterFn | None = None,
) -> jax.Array | saiunit.Quantity:
    """Sparse product ``x @ W + bias_fn(bias)``, trainable by eligibility traces.

    ``W`` has the structure of ``sparse_mat`` and the stored values ``weight_fn(weight_data)``. Its
    trace has one entry per stored value.

    Parameters
    ----------
    x
        Input, [in] for one example or [batch, in] for a batch of independent examples.
    weight_data
        Stored values [nnz] after ``weight_fn``, in the shape and order of ``sparse_mat.data``;
        where the matrix keeps one value for all its entries, that one value.
    sparse_mat
        Matrix [in, out] that says where the values stand: a ``CSR``, ``CSC`` or ``COO`` of
        ``saiunit.sparse`` or ``brainevent``, or a ``jax.experimental.sparse.BCOO`` without batch or
        dense dimensions; or another ``saiunit.sparse.SparseMatrix``, such as a
        ``brainevent.DataRepresentation``, of which ``with_data(weight_data).todense()`` is taken.
        Its own values are not used. Indices may be in any order; values of equal indices are
        added; entries of a ``COO`` or ``BCOO`` outside the matrix, and those of
        the others beyond the last pointer, are padding.
    bias
        Bias, [out] after ``bias_fn``; its unit must have the dimension of ``x @ W``.
    weight_fn, bias_fn
        Functions of the parameter alone (a mask, a sign, a normalisation), applied before the
        operation. Of a parameter with a unit they get the numbers, those of the bias in the unit of
        the product, and the unit stays. They are as exact as the operation itself: the compiler
        keeps the trace of the processed parameter and pulls its gradient back. ``bias_fn`` is
        unused without ``bias``.

    Returns
    -------
    jax.Array or saiunit.Quantity
        [out] or [batch, out], in the unit of ``x`` times the unit of ``weight_data`` (an array
        when that is dimensionless) and the dtype that ``jax.numpy.result_type`` gives.

    Raises
    ------
    TypeError
        When an argument is no array, its dtype is not real floating point, ``sparse_mat`` is no
        such matrix or its indices are no integers, the unit of ``bias`` does not fit, or
        ``sparse_mat`` has values with a unit and that of ``weight_data`` has another dimension.
    ValueError
        When the rank or the shape of an argument does not fit, or the indices do not.

    Notes
    -----
    Binds ``etp_sp_mv`` for a vector and ``etp_sp_mm`` for a matrix; the indices are operands, so
    they may be traced (negative ones are refused where they are known, padding where they are
    not). ``jax.vmap`` over ``x`` turns the former into the latter.

    Examples
    --------
    >>> import jax.numpy as jnp, saiunit
    >>> import braintrace
    >>> matrix = saiunit.sparse.CSR.fromdense(jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))
    >>> braintrace.sparse_matmul(jnp.ones(2), matrix.data, sparse_mat=matrix).tolist()
    [1.0, 3.0, 2.0]
    >>> y = braintrace.sparse_matmul(
    ...     jnp.ones((5, 2)), -matrix.data, sparse_mat=matrix, weight_fn=jnp.abs, bias=jnp.ones(3)
    ... )
    >>> y.shape, y[0].tolist()
    ((5, 3), [2.0, 4.0, 3.0])
    """
    entries = entries_of(sparse_mat)
    x_value, x_unit = real_array(OP, "x", x)
    weight = processed(OP, "weight_fn", weight_fn, weight_data)
    w_value, w_unit = real_array(OP, "weight_data", weight)
    _check_product(x_value, w_unit, entries)
    operands, unit = [x_value, _stored_values(w_value, entries)], x_unit * w_unit
    if bias is not None:
        bias = processed(OP, "bias_fn", bias_fn, bias, unit)
        operands.append(bias_in_unit(OP, bias, entries.shape[1:], unit, "x @ sparse_mat"))
    dtype = jnp.result_type(*operands)
    y = bind(
        ETP_SP_MV if x_value.ndim == 1 else ETP_SP_MM,
        *(operand.astype(dtype) for operand in operands),
        entries.row,
        entries.col,
        has_bias=bias is not None,
        num_out=entries.shape[1],
    )
    return with_unit(y, unit)


def _check_product(x: jax.Array, unit: saiunit.Unit, entries: Entries) -> None:
    if x.ndim not in (1, 2):
        raise ValueError(
            f"{OP}: x must have shape [in] or [batch, in], got shape {x.shape}. "
            "braintrace.nn.SparseLinear folds further leading axes into the batch"
        )
    if x.shape[-1] != entries.shape[0]:
        raise ValueError(
            f"{OP}: the last axis of x has size {x.shape[-1]}, expected {entries.shape[0]}: x has "
            f"shape {x.shape} and sparse_mat has shape {entries.shape}"
        )
    if not (entries.unit.is_unitless or unit.has_same_dim(entries.unit)):
        raise TypeError(
            f"{OP}: weight_data has the unit {unit}, expected the unit of the values of "
            f"sparse_mat, {entries.unit}"
        )


def _stored_values(weight: jax.Array, entries: Entries) -> jax.Array:
    """One value per entry; a value that all entries share is repeated."""
    if entries.shared and weight.shape in ((), (1,)):
        return jnp.broadcast_to(weight.reshape(()), (entries.nnz,))
    if weight.shape != entries.data:
        raise ValueError(
            f"{OP}: weight_data must have shape {entries.data}, one value per entry of "
            f"sparse_mat, got shape {weight.shape}"
        )
    if entries.whole is None:
        return weight.reshape(-1)
    return entries.whole(weight)[entries.row, entries.col]
