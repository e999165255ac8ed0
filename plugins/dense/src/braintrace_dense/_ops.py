# SPDX-License-Identifier: Apache-2.0
"""The operation ``matmul``: checks, units and dtypes around the dense primitives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import saiunit

from braintrace.plugin_api import bind

from ._primitives import ETP_MM, ETP_MV

ArrayLike = jax.typing.ArrayLike | saiunit.Quantity
ParameterFn = Callable[[Any], Any]


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
        operation. They are as exact as the operation itself: the compiler keeps the trace of the
        processed parameter and pulls its gradient back. ``bias_fn`` is unused without ``bias``.

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
    x_value, x_unit = _array("x", x)
    w_value, w_unit = _array("weight", _processed("weight_fn", weight_fn, weight))
    _check_product(x_value, w_value)
    operands, unit = [x_value, w_value], x_unit * w_unit
    if bias is not None:
        processed = _processed("bias_fn", bias_fn, bias)
        operands.append(_bias_in_unit(processed, w_value.shape[1], unit))
    dtype = jnp.result_type(*operands)
    y = bind(
        ETP_MV if x_value.ndim == 1 else ETP_MM,
        *(operand.astype(dtype) for operand in operands),
        has_bias=bias is not None,
    )
    return saiunit.maybe_decimal(saiunit.Quantity(y, unit=unit))


def _processed(name: str, fn: ParameterFn | None, parameter: ArrayLike) -> ArrayLike:
    if fn is None:
        return parameter
    if not callable(fn):
        raise TypeError(f"matmul: {name} must be a function, got {type(fn).__name__}")
    return fn(parameter)


def _array(name: str, value: ArrayLike) -> tuple[jax.Array, Any]:
    """The mantissa of an argument as a real floating-point array, and its unit."""
    try:
        mantissa, unit = saiunit.split_mantissa_unit(value)
        array = jnp.asarray(mantissa)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"matmul: {name} must be an array or a saiunit.Quantity, got {type(value).__name__}"
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"matmul: {name} has the complex dtype {array.dtype}; eligibility traces are defined "
            "for real numbers. Pass real and imaginary parts as separate features"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"matmul: {name} has dtype {array.dtype}, expected a floating-point dtype. "
            f"Convert it, for example with {name}.astype(jax.numpy.float32)"
        )
    return array, unit


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


def _bias_in_unit(bias: ArrayLike, size: int, unit: Any) -> jax.Array:
    """The bias as a plain array in the unit of the product."""
    value, bias_unit = _array("bias", bias)
    if value.shape != (size,):
        raise ValueError(f"matmul: bias must have shape {(size,)}, got shape {value.shape}")
    if not bias_unit.has_same_dim(unit):
        raise TypeError(
            f"matmul: bias has the unit {bias_unit}, expected the unit of x @ weight, {unit}"
        )
    return jnp.asarray(saiunit.Quantity(value, unit=bias_unit).to_decimal(unit))
