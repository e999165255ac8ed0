# SPDX-License-Identifier: Apache-2.0
"""The operation ``matmul``: checks, units and dtypes around the dense primitives."""

from __future__ import annotations

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

from ._primitives import ETP_MM, ETP_MV


def matmul(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    weight_fn: ParameterFn | None = None,
    bias_fn: ParameterFn | None = None,
) -> jax.Array | saiunit.Quantity:
    """Dense product ``x @ weight_fn(weight) + bias_fn(bias)``, trainable by eligibility traces.

    Parameters
    ----------
    x
        Input, [in] for one example or [batch, in] for a batch of independent examples.
    weight
        Weight, [in, out] after ``weight_fn``.
    bias
        Bias, [out] after ``bias_fn``; its unit must have the dimension of ``x @ weight``.
    weight_fn, bias_fn
        Functions of the parameter alone (a mask, a sign, a normalisation), applied before the
        operation. Of a parameter with a unit they get the numbers, those of the bias in the unit of
        the product, and the unit stays. They are as exact as the operation itself: the compiler
        keeps the trace of the processed parameter and pulls its gradient back. ``bias_fn`` is
        unused without ``bias``.

    Returns
    -------
    jax.Array or saiunit.Quantity
        [out] or [batch, out], in the unit of ``x`` times the unit of ``weight`` (an array when
        that is dimensionless) and the dtype that ``jax.numpy.result_type`` gives.

    Raises
    ------
    TypeError
        When an argument is no array, its dtype is not real floating point, or the unit of
        ``bias`` does not fit.
    ValueError
        When the rank or the shape of an argument does not fit.

    Notes
    -----
    Binds ``etp_mv`` for a vector and ``etp_mm`` for a matrix. ``jax.vmap`` over ``x`` turns the
    former into the latter.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> braintrace.matmul(jnp.ones(3), jnp.ones((3, 2)), jnp.ones(2)).tolist()
    [4.0, 4.0]
    >>> braintrace.matmul(jnp.ones((5, 3)), -jnp.ones((3, 2)), weight_fn=jnp.abs).shape
    (5, 2)
    """
    x_value, x_unit = real_array("matmul", "x", x)
    w_value, w_unit = real_array(
        "matmul", "weight", processed("matmul", "weight_fn", weight_fn, weight)
    )
    _check_product(x_value, w_value)
    operands, unit = [x_value, w_value], x_unit * w_unit
    if bias is not None:
        bias = processed("matmul", "bias_fn", bias_fn, bias, unit)
        operands.append(bias_in_unit("matmul", bias, w_value.shape[1:], unit, "x @ weight"))
    dtype = jnp.result_type(*operands)
    y = bind(
        ETP_MV if x_value.ndim == 1 else ETP_MM,
        *(v if v.dtype == dtype else v.astype(dtype) for v in operands),
        has_bias=bias is not None,
    )
    return with_unit(y, unit)


def _check_product(x: jax.Array, weight: jax.Array) -> None:
    if x.ndim not in (1, 2):
        raise ValueError(
            f"matmul: x must have shape [in] or [batch, in], got shape {x.shape}. "
            "braintrace.nn.Linear folds further leading axes into the batch"
        )
    if weight.ndim != 2:
        raise ValueError(f"matmul: weight must have shape [in, out], got shape {weight.shape}")
    if x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"matmul: the last axis of x has size {x.shape[-1]}, expected {weight.shape[0]}: "
            f"x has shape {x.shape} and weight has shape {weight.shape}"
        )
