# SPDX-License-Identifier: Apache-2.0
"""The operations ``einsum`` and ``grouped_matmul``: checks, units and dtypes."""

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

from ._equation import Equation, parse
from ._primitives import primitive_of

#: Of one example: groups, inputs and outputs of a group.
GROUPED = Equation("gi", "gio", "go")


def einsum(
    equation: str,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    weight_fn: ParameterFn | None = None,
) -> jax.Array | saiunit.Quantity:
    """``einsum(equation, x, weight_fn(weight))``, trainable by eligibility traces.

    Parameters
    ----------
    equation
        Letters of the axes of ``x``, of ``weight`` and of the result, as ``numpy.einsum`` takes
        them: ``"bi,io->bo"``. An ellipsis stands for further axes of ``x`` and of the result.
    x
        Input. Where the first letter of the result is one of ``x`` and not of the weight, it
        counts independent examples.
    weight
        Weight, with the letters of the second operand after ``weight_fn``.
    weight_fn
        Function of the parameter alone (a mask, a sign, a normalisation), applied before the
        operation. Of a parameter with a unit it gets the numbers, and the unit stays.

    Returns
    -------
    jax.Array or saiunit.Quantity
        An array with the letters of the result, in the unit of ``x`` times the unit of ``weight``
        and the dtype that ``jax.numpy.result_type`` gives.

    Raises
    ------
    TypeError
        When the equation is no string, or an operand is no array of a real floating-point dtype.
    ValueError
        When the equation cannot be read, is not one of two operands, or does not fit the shapes.

    Notes
    -----
    Letters of ``x`` and ``weight`` alone are summed over; those of ``weight`` and the result are
    outputs; those of all three are groups, with weights of their own. All of these keep a trace in
    the shape of the weight. Letters of ``x`` and the result alone, other than the examples, are
    positions that share the weight: the exact trace has an entry for each position and entry of the
    weight, as for a convolution.

    As for every product, D-RTRL cuts gradients between hidden states at the operation, except where
    each entry of the result reads one entry of ``x`` (``"bn,n->bn"``): these pass through it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> heads = jnp.ones((4, 3, 2))  # for each of 4 heads 3 inputs and 2 outputs
    >>> braintrace.einsum("bhi,hio->bho", jnp.ones((5, 4, 3)), heads).shape
    (5, 4, 2)
    >>> braintrace.einsum("...i,io->...o", jnp.ones((5, 7, 3)), jnp.ones((3, 2))).shape
    (5, 7, 2)
    """
    x_value, x_unit = real_array("einsum", "x", x)
    w_value, w_unit = real_array(
        "einsum", "weight", processed("einsum", "weight_fn", weight_fn, weight)
    )
    parsed = parse(equation, x_value.shape, w_value.shape)
    dtype = jnp.result_type(x_value, w_value)
    operands = (
        _brought(how, value.astype(dtype))
        for how, value in ((parsed.x, x_value), (parsed.weight, w_value))
    )
    spec = primitive_of(parsed.equation, parsed.batched)
    return with_unit(bind(spec, *operands, equation=str(parsed.equation)), x_unit * w_unit)


def _brought(how: str, value: jax.Array) -> jax.Array:
    """``value`` with the letters that count."""
    before, after = how.split("->")
    return value if before == after else jnp.einsum(how, value)


def grouped_matmul(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    weight_fn: ParameterFn | None = None,
    bias_fn: ParameterFn | None = None,
) -> jax.Array | saiunit.Quantity:
    """A product for each group, ``x[g] @ weight[g] + bias[g]``, trainable by eligibility traces.

    Parameters
    ----------
    x
        Input, [groups, in] for one example or [batch, groups, in].
    weight
        Weights, [groups, in, out] after ``weight_fn``.
    bias
        Biases, [groups, out] after ``bias_fn``; their unit must have the dimension of the product.
    weight_fn, bias_fn
        Functions of the parameter alone, applied before the operation. Of a parameter with a unit
        they get the numbers, those of the bias in the unit of the product, and the unit stays.
        ``bias_fn`` is unused without ``bias``.

    Returns
    -------
    jax.Array or saiunit.Quantity
        [groups, out] or [batch, groups, out], in the unit of ``x`` times the unit of ``weight`` and
        the dtype that ``jax.numpy.result_type`` gives.

    Raises
    ------
    TypeError
        When an argument is no array, its dtype is not real floating point, or the unit of
        ``bias`` does not fit.
    ValueError
        When the rank or the shape of an argument does not fit.

    Notes
    -----
    A dense product with a weight of blocks along its diagonal, without the zeros: its trace
    [batch, groups, in, out, states] is smaller by the number of groups. Heads, compartments and
    cell types are groups.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> braintrace.grouped_matmul(jnp.ones((4, 3)), jnp.ones((4, 3, 2)), jnp.ones((4, 2))).shape
    (4, 2)
    """
    x_value, x_unit = real_array("grouped_matmul", "x", x)
    w_value, w_unit = real_array(
        "grouped_matmul", "weight", processed("grouped_matmul", "weight_fn", weight_fn, weight)
    )
    _check_groups(x_value.shape, w_value.shape)
    operands, unit, equation = [x_value, w_value], x_unit * w_unit, GROUPED
    if bias is not None:
        bias = processed("grouped_matmul", "bias_fn", bias_fn, bias, unit)
        shape = (w_value.shape[0], w_value.shape[2])
        operands.append(bias_in_unit("grouped_matmul", bias, shape, unit, "x @ weight"))
        equation = GROUPED._replace(bias="go")
    dtype = jnp.result_type(*operands)
    spec = primitive_of(equation, batched=x_value.ndim == 3)
    y = bind(spec, *(value.astype(dtype) for value in operands), equation=str(equation))
    return with_unit(y, unit)


def _check_groups(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    if len(x) not in (2, 3):
        raise ValueError(
            f"grouped_matmul: x must have shape [groups, in] or [batch, groups, in], got shape {x}."
            " braintrace.nn.GroupedLinear folds further leading axes into the batch"
        )
    if len(weight) != 3:
        raise ValueError(
            f"grouped_matmul: weight must have shape [groups, in, out], got shape {weight}"
        )
    if x[-2:] != weight[:2]:
        raise ValueError(
            f"grouped_matmul: the last two axes of x have the sizes {x[-2:]}, expected groups and "
            f"inputs of weight, {weight[:2]}: x has shape {x} and weight has shape {weight}"
        )
