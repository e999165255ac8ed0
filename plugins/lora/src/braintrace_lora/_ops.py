# SPDX-License-Identifier: Apache-2.0
"""The operation ``lora_matmul``: checks, units and dtypes around the low-rank primitives."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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

from ._primitives import ETP_LORA_MM, ETP_LORA_MV


def lora_matmul(
    x: ArrayLike,
    B: ArrayLike,
    A: ArrayLike,
    *,
    alpha: float = 1.0,
    bias: ArrayLike | None = None,
    b_fn: ParameterFn | None = None,
    a_fn: ParameterFn | None = None,
    bias_fn: ParameterFn | None = None,
) -> jax.Array | saiunit.Quantity:
    """Low-rank product ``alpha * x @ b_fn(B) @ a_fn(A) + bias_fn(bias)``, trainable by traces.

    Parameters
    ----------
    x
        Input, [in] for one example or [batch, in] for a batch of independent examples.
    B
        First factor, [in, rank] after ``b_fn``.
    A
        Second factor, [rank, out] after ``a_fn``.
    alpha
        A fixed, finite number. One that is trained or varies is multiplied in outside: see below.
    bias
        Bias, [out] after ``bias_fn``; its unit must have the dimension of ``x @ B @ A``.
    b_fn, a_fn, bias_fn
        Functions of the parameter alone (a mask, a sign, a normalisation), applied before the
        operation. Of a parameter with a unit they get the numbers, those of the bias in the unit of
        the product, and the unit stays. They are as exact as the operation itself: the compiler
        keeps the trace of the processed parameter and pulls its gradient back. ``bias_fn`` is
        unused without ``bias``.

    Returns
    -------
    jax.Array or saiunit.Quantity
        [out] or [batch, out], in the product of the units of ``x``, ``B`` and ``A`` (an array when
        that is dimensionless) and the dtype that ``jax.numpy.result_type`` gives for the arrays.

    Raises
    ------
    TypeError
        When an argument is no array, its dtype is not real floating point, ``alpha`` is no fixed
        number, or the unit of ``bias`` does not fit.
    ValueError
        When the rank or the shape of an argument does not fit, or ``alpha`` is not finite.

    Notes
    -----
    Binds ``etp_lora_mv`` for a vector and ``etp_lora_mm`` for a matrix. ``jax.vmap`` over ``x``
    turns the former into the latter.

    Both factors are exact: the trace of ``A`` has its shape, that of ``B`` is the trace of
    ``B @ A``, [in, out], because one entry of ``B`` feeds every output. Gradients inside a block
    stay low-rank.

    A factor in place of ``alpha`` that is trained belongs to a parameter (``alpha * A``, or
    ``a_fn``), and one that varies from step to step to the input (``alpha * x``); both are exact.

    The product of Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021
    (arXiv 2106.09685), in the order of row vectors.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> x, B, A = jnp.ones(3), jnp.ones((3, 1)), jnp.ones((1, 2))
    >>> braintrace.lora_matmul(x, B, A, alpha=0.5, bias=jnp.ones(2)).tolist()
    [2.5, 2.5]
    >>> braintrace.lora_matmul(jnp.ones((5, 3)), -B, A, b_fn=jnp.abs).shape
    (5, 2)
    """
    x_value, x_unit = real_array("lora_matmul", "x", x)
    b_value, b_unit = real_array("lora_matmul", "B", processed("lora_matmul", "b_fn", b_fn, B))
    a_value, a_unit = real_array("lora_matmul", "A", processed("lora_matmul", "a_fn", a_fn, A))
    _check_product(x_value, b_value, a_value)
    alpha = fixed_number("lora_matmul", alpha)
    operands, unit = [x_value, b_value, a_value], x_unit * b_unit * a_unit
    if bias is not None:
        bias = processed("lora_matmul", "bias_fn", bias_fn, bias, unit)
        operands.append(bias_in_unit("lora_matmul", bias, a_value.shape[1:], unit, "x @ B @ A"))
    dtype = jnp.result_type(*operands)
    y = bind(
        ETP_LORA_MV if x_value.ndim == 1 else ETP_LORA_MM,
        *(operand.astype(dtype) for operand in operands),
        alpha=alpha,
        has_bias=bias is not None,
    )
    return with_unit(y, unit)


def _check_product(x: jax.Array, B: jax.Array, A: jax.Array) -> None:
    if x.ndim not in (1, 2):
        raise ValueError(
            f"lora_matmul: x must have shape [in] or [batch, in], got shape {x.shape}. "
            "braintrace.nn.LoRA folds further leading axes into the batch"
        )
    if B.ndim != 2:
        raise ValueError(f"lora_matmul: B must have shape [in, rank], got shape {B.shape}")
    if A.ndim != 2:
        raise ValueError(f"lora_matmul: A must have shape [rank, out], got shape {A.shape}")
    if x.shape[-1] != B.shape[0]:
        raise ValueError(
            f"lora_matmul: the last axis of x has size {x.shape[-1]}, expected {B.shape[0]}: "
            f"x has shape {x.shape} and B has shape {B.shape}"
        )
    if B.shape[1] != A.shape[0]:
        raise ValueError(
            f"lora_matmul: B has the rank {B.shape[1]} and A has the rank {A.shape[0]}; they must "
            f"be equal: B has shape {B.shape} and A has shape {A.shape}"
        )


def fixed_number(operation: str, alpha: Any) -> float:
    """``alpha`` as a finite Python float.

    Raises
    ------
    TypeError, ValueError
        When it is traced, no real number, or not finite.
    """
    if isinstance(alpha, jax.core.Tracer):
        raise TypeError(
            f"{operation}: alpha must be a fixed number, got a traced value {alpha.aval}. Multiply "
            "A by it if it is trained, or x if it varies from step to step"
        )
    is_array = isinstance(alpha, np.ndarray | jax.Array) and alpha.shape == ()
    number = alpha.item() if is_array else alpha
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        shape = f" of shape {alpha.shape}" if isinstance(alpha, np.ndarray | jax.Array) else ""
        raise TypeError(
            f"{operation}: alpha must be a real number without a unit, got a "
            f"{type(alpha).__name__}{shape}; multiply A or the result by anything else"
        )
    if not math.isfinite(number):
        raise ValueError(f"{operation}: alpha must be finite, got {number}")
    return float(number)
