# SPDX-License-Identifier: Apache-2.0
"""The operation ``conv``: checks, layouts, units and dtypes around the primitive ``etp_conv``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import saiunit

from braintrace.plugin_api import (
    ArrayLike,
    ParameterFn,
    as_count,
    as_size,
    bias_in_unit,
    bind,
    processed,
    real_array,
    with_unit,
)

from ._primitives import ETP_CONV, Pairs, Sizes

PerAxis = int | Sequence[int]

PADDINGS = ("SAME", "SAME_LOWER", "VALID")


def conv(
    x: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    strides: PerAxis = (1,),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    lhs_dilation: PerAxis | None = None,
    rhs_dilation: PerAxis | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    dimension_numbers: Any = None,
    kernel_fn: ParameterFn | None = None,
    bias_fn: ParameterFn | None = None,
) -> jax.Array | saiunit.Quantity:
    """Convolution of a batch with ``kernel_fn(kernel)``, trainable by eligibility traces.

    It computes ``jax.lax.conv_general_dilated`` and adds ``bias_fn(bias)`` to each channel.

    Parameters
    ----------
    x
        A batch of inputs with one to three spatial axes, laid out as ``dimension_numbers`` say; by
        default [batch, channels, *spatial].
    kernel
        Kernel; by default [output channels, input channels / groups, *spatial].
    bias
        Bias [output channels], or the same with axes of size one that puts it on the channel axis
        of the result; its unit must have the dimension of ``x`` times ``kernel``.
    strides
        Steps between output positions, for all spatial axes or for each.
    padding
        ``"SAME"``, ``"SAME_LOWER"``, ``"VALID"``, or for each spatial axis a pair
        ``(low, high)``; negative numbers crop.
    lhs_dilation, rhs_dilation
        Distance between elements of the input and of the kernel, for all spatial axes or for each;
        ``None`` is 1. A dilated input needs explicit padding.
    feature_group_count
        Number of groups that the channels are divided into, each with a convolution of its own.
    batch_group_count
        Number of groups that the batch is divided into, one for each group of output channels. The
        result has an example for each ``batch_group_count`` examples of ``x``.
    dimension_numbers
        Layout of input, kernel and output, as ``jax.lax.conv_dimension_numbers`` takes it, for
        example ``("NHWC", "HWIO", "NHWC")``. ``None``: batch and channels in front, in all three.
    kernel_fn, bias_fn
        Functions of the parameter alone (a mask, a sign, a normalisation), applied before the
        operation. Of a parameter with a unit they get the numbers, those of the bias in the unit of
        the product, and the unit stays. They are as exact as the operation itself: the compiler
        keeps the trace of the processed parameter and pulls its gradient back. ``bias_fn`` is
        unused without ``bias``.

    Returns
    -------
    jax.Array or saiunit.Quantity
        The result in the layout asked for, in the unit of ``x`` times the unit of ``kernel`` (an
        array when that is dimensionless) and the dtype that ``jax.numpy.result_type`` gives.

    Raises
    ------
    TypeError
        When an argument is no array, its dtype is not real floating point, or the unit of
        ``bias`` does not fit.
    ValueError
        When a shape, a size or a layout does not fit, or the result would have no elements.

    Notes
    -----
    Binds ``etp_conv``, which has its channels last; other layouts are transposed before and after
    it, and groups of the batch become groups of the channels, which is the same convolution. The
    trace that is carried between blocks of steps has an entry for each output position and element
    of the kernel; while it is not carried, nothing of that size is computed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> x, kernel = jnp.ones((8, 3, 16)), jnp.ones((4, 3, 5))
    >>> braintrace.conv(x, kernel, strides=2).shape
    (8, 4, 8)
    >>> x, kernel, bias = jnp.ones((8, 6, 6, 2)), jnp.ones((3, 3, 2, 4)), jnp.ones(4)
    >>> layout = ("NHWC", "HWIO", "NHWC")
    >>> braintrace.conv(x, kernel, bias, padding="VALID", dimension_numbers=layout).shape
    (8, 4, 4, 4)
    """
    x_value, x_unit = real_array("conv", "x", x)
    kernel_value, kernel_unit = real_array(
        "conv", "kernel", processed("conv", "kernel_fn", kernel_fn, kernel)
    )
    layout = _layout(x_value.shape, kernel_value.shape, dimension_numbers)
    channels = _Channels.of(layout, feature_group_count, batch_group_count)
    geometry = _geometry(layout, strides, padding, lhs_dilation, rhs_dilation)
    unit = x_unit * kernel_unit
    operands = [
        channels.join(x_value.transpose(layout.image)),
        kernel_value.transpose(layout.kernel),
    ]
    if bias is not None:
        bias = _on_channels(processed("conv", "bias_fn", bias_fn, bias, unit), layout)
        shape = (layout.kernel_shape[-1],)
        operands.append(bias_in_unit("conv", bias, shape, unit, "x times kernel"))
    dtype = jnp.result_type(*operands)
    y = bind(
        ETP_CONV,
        *(operand.astype(dtype) for operand in operands),
        has_bias=bias is not None,
        groups=channels.groups,
        **geometry,
    )
    return with_unit(y.transpose(layout.result), unit)


# --- layouts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Permutations to and from channels-last arrays, and shapes of those.

    Attributes
    ----------
    image, kernel
        The axes of ``x`` and of the kernel, in the order of [B, *X, C] and [*K, I, O].
    result
        The axes of ``y`` [B, *Y, O], in the order that the caller asks for.
    image_shape, kernel_shape
        Shapes in the channels-last layout.
    """

    image: Sizes
    kernel: Sizes
    result: Sizes
    image_shape: Sizes
    kernel_shape: Sizes

    @property
    def spatial(self) -> int:
        """Number of spatial axes."""
        return len(self.image) - 2


def _layout(x: Sizes, kernel: Sizes, dimension_numbers: Any) -> _Layout:
    if len(x) not in (3, 4, 5):
        raise ValueError(
            "conv: x must have a batch axis, a channel axis and one to three spatial axes, got "
            f"shape {x}. Give a single example a batch axis of size one"
        )
    if len(kernel) != len(x):
        raise ValueError(
            f"conv: kernel must have {len(x)} axes like x of shape {x}, got shape {kernel}. "
            "If x is a single example, give it a batch axis of size one"
        )
    numbers = _numbers(x, kernel, dimension_numbers)
    image, weight, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    to_image = (image[0], *image[2:], image[1])
    to_kernel = (*weight[2:], weight[1], weight[0])
    return _Layout(
        to_image,
        to_kernel,
        _inverse((out[0], *out[2:], out[1])),
        tuple(x[i] for i in to_image),
        tuple(kernel[i] for i in to_kernel),
    )


def _numbers(x: Sizes, kernel: Sizes, wanted: Any) -> jax.lax.ConvDimensionNumbers:
    try:
        numbers = jax.lax.conv_dimension_numbers(x, kernel, wanted)
        axes = [sorted(spec) for spec in numbers]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"conv: dimension_numbers {wanted!r} do not fit x of shape {x} and kernel of shape "
            f"{kernel}: {error}"
        ) from error
    if any(found != list(range(len(x))) for found in axes):
        raise ValueError(
            f"conv: dimension_numbers must name each of the {len(x)} axes once, got {wanted!r}"
        )
    return numbers


def _inverse(order: Sizes) -> Sizes:
    return tuple(order.index(i) for i in range(len(order)))


def _on_channels(bias: Any, layout: _Layout) -> Any:
    """A bias that is broadcast along all axes of the result but the channels, as [O]."""
    channels, place = layout.kernel_shape[-1], layout.result.index(len(layout.result) - 1)
    whole = tuple(channels if i == place else 1 for i in range(len(layout.result)))
    shape = saiunit.math.shape(bias)
    if len(shape) > 1 and (1,) * (len(whole) - len(shape)) + shape == whole:
        return saiunit.math.reshape(bias, (channels,))
    return bias


# --- channels and groups ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Channels:
    """How channels are divided.

    A convolution in groups of the batch is one in groups of the channels: with ``m`` examples in
    each of ``g`` groups, group ``j`` of the output channels of example ``e`` reads example
    ``j m + e`` of the input, that is group ``j`` of the channels when those examples are put side
    by side.
    """

    groups: int
    batch_groups: int

    @classmethod
    def of(cls, layout: _Layout, feature_groups: Any, batch_groups: Any) -> _Channels:
        """The groups, after checking that they divide the channels and the batch."""
        features = as_count("conv: feature_group_count", feature_groups)
        batches = as_count("conv: batch_group_count", batch_groups)
        (batch, *_, inputs), (*_, read, outputs) = layout.image_shape, layout.kernel_shape
        if features > 1 and batches > 1:
            raise ValueError(
                f"conv: feature_group_count is {features} and batch_group_count is {batches}; at "
                "least one of them must be 1"
            )
        if inputs != read * features:
            raise ValueError(
                f"conv: x has {inputs} channels, expected {read * features}: the kernel reads "
                f"{read} in each of {features} groups (feature_group_count). Which axes are "
                "channels is what dimension_numbers says; by default axis 1 of x and of the kernel"
            )
        if outputs % (features * batches):
            raise ValueError(
                f"conv: the kernel has {outputs} output channels, which "
                f"{features * batches} groups do not divide"
            )
        if batch % batches:
            raise ValueError(
                f"conv: x has a batch of {batch}, which batch_group_count={batches} does not divide"
            )
        return cls(features * batches, batches)

    def join(self, x: jax.Array) -> jax.Array:
        """[g m, *X, C] to [m, *X, g C]."""
        g, (batch, *space, inputs) = self.batch_groups, x.shape
        if g == 1:
            return x
        x = jnp.moveaxis(x.reshape(g, batch // g, *space, inputs), 0, -2)
        return x.reshape(batch // g, *space, g * inputs)


# --- geometry -----------------------------------------------------------------------------------


def _geometry(
    layout: _Layout, strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any
) -> dict[str, Any]:
    """Strides, padding and dilations as parameters of the primitive."""
    axes = layout.spatial
    step, dilated = _sizes("strides", strides, axes), _sizes("lhs_dilation", lhs_dilation, axes)
    apart = _sizes("rhs_dilation", rhs_dilation, axes)
    window = _spans(layout.kernel_shape[:axes], apart)
    room = layout.image_shape[1:-1]
    pads = _padding(padding, room, window, step, dilated)
    for k, (size, pad, width) in enumerate(zip(_spans(room, dilated), pads, window, strict=True)):
        if size + sum(pad) < width:
            raise ValueError(
                f"conv: along spatial axis {k}, the kernel spans {width} elements and the padded "
                f"x has {max(size + sum(pad), 0)}, so the result would have no elements"
            )
    return {"strides": step, "padding": pads, "lhs_dilation": dilated, "rhs_dilation": apart}


def _sizes(name: str, value: Any, axes: int) -> Sizes:
    """Positive integers, one for each spatial axis."""
    sizes = as_size(f"conv: {name}", 1 if value is None else value)
    if len(sizes) not in (1, axes):
        raise ValueError(
            f"conv: {name} must be one integer or one for each of {axes} spatial axes, got {value}"
        )
    return sizes if len(sizes) == axes else sizes * axes


def _spans(sizes: Sizes, dilation: Sizes) -> Sizes:
    """Elements from the first to the last, the gaps of a dilation included."""
    return tuple(max((n - 1) * d + 1, 0) for n, d in zip(sizes, dilation, strict=True))


def _padding(padding: Any, room: Sizes, window: Sizes, strides: Sizes, dilated: Sizes) -> Pairs:
    if not isinstance(padding, str):
        return _pairs(padding, len(room))
    if padding.upper() not in PADDINGS:
        raise ValueError(f"conv: padding must be one of {PADDINGS} or pairs, got {padding!r}")
    if math.prod(dilated) != 1:
        raise ValueError(
            f"conv: padding is {padding!r} and lhs_dilation is {dilated}; a dilated input needs "
            "explicit padding, a pair (low, high) for each spatial axis"
        )
    pads = jax.lax.padtype_to_pads(room, window, strides, padding)
    return tuple((int(low), int(high)) for low, high in pads)


def _pairs(padding: Any, axes: int) -> Pairs:
    try:
        pads = tuple((low.__index__(), high.__index__()) for low, high in padding)
    except (TypeError, ValueError, AttributeError):
        pads = ()
    if len(pads) != axes:
        raise ValueError(
            f"conv: padding must be one of {PADDINGS} or {axes} pairs of integers (low, high), one "
            f"for each spatial axis, got {padding!r}"
        )
    return pads
