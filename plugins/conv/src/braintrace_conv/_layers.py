# SPDX-License-Identifier: Apache-2.0
"""The layers ``Conv1d``, ``Conv2d`` and ``Conv3d``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import (
    ArrayLike,
    Initializer,
    Size,
    as_count,
    as_size,
    initial_value,
    keyword_key,
    seeded,
)

from ._ops import conv

Padding = str | int | tuple[int, ...] | Sequence[tuple[int, int]]

XAVIER: Initializer = init.XavierNormal()


class _Convolution:
    """Parameters and forward pass of a convolutional layer, in front of one of ``brainstate.nn``.

    That class keeps the geometry, computes the size of the output and checks inputs; a single
    example gets a batch axis for the operation there.
    """

    num_spatial_dims: int
    out_channels: int
    stride: tuple[int, ...]
    padding: Any
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    channel_first: bool
    dimension_numbers: Any
    weight: Any
    w_mask: Any

    @keyword_key
    def __init__(
        self,
        in_size: Size,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = "SAME",
        lhs_dilation: Size = 1,
        rhs_dilation: Size = 1,
        groups: int = 1,
        w_init: Initializer = XAVIER,
        b_init: Initializer | None = None,
        w_mask: Initializer | None = None,
        channel_first: bool = False,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        key: Any = None,
    ) -> None:
        masked = w_mask is not None
        with seeded(key):
            super().__init__(
                in_size=as_size("in_size", in_size),
                out_channels=as_count("out_channels", out_channels),
                kernel_size=as_size("kernel_size", kernel_size),
                stride=as_size("stride", stride),
                padding=padding,
                lhs_dilation=as_size("lhs_dilation", lhs_dilation),
                rhs_dilation=as_size("rhs_dilation", rhs_dilation),
                groups=as_count("groups", groups),
                w_init=lambda shape: initial_value("w_init", w_init, shape),
                w_mask=(lambda shape: initial_value("w_mask", w_mask, shape)) if masked else None,
                channel_first=channel_first,
                name=name,
                param_type=param_type,
            )  # type: ignore[call-arg]
            weight = self.weight.value["weight"]
            if masked:
                self.w_mask = self.w_mask.astype(saiunit.math.get_dtype(weight))
            if b_init is not None:
                bias = initial_value("b_init", b_init, self._bias_shape)
                self.weight = param_type({"weight": weight, "bias": bias})
        self.b_initializer = b_init

    @property
    def _bias_shape(self) -> tuple[int, ...]:
        """Shape in which ``brainstate.nn`` keeps a bias."""
        ones = (1,) * self.num_spatial_dims
        return (1, self.out_channels, *ones) if self.channel_first else (*ones, self.out_channels)

    def _conv_op(self, x: ArrayLike, params: dict[str, Any]) -> jax.Array | saiunit.Quantity:
        return conv(
            x,
            params["weight"],
            params.get("bias"),
            strides=self.stride,
            padding=self.padding,
            lhs_dilation=self.lhs_dilation,
            rhs_dilation=self.rhs_dilation,
            feature_group_count=self.groups,
            dimension_numbers=self.dimension_numbers,
            kernel_fn=self._masked,
        )

    def _masked(self, weight: ArrayLike) -> ArrayLike:
        return weight if self.w_mask is None else weight * self.w_mask


class Conv1d(_Convolution, brainstate.nn.Conv1d):
    """Convolution along one axis, trained by eligibility traces.

    A drop-in for ``brainstate.nn.Conv1d`` that computes through :func:`braintrace.conv`.

    Parameters
    ----------
    in_size
        Size of one example: (length, channels), or (channels, length) with ``channel_first``.
    out_channels
        Number of output channels.
    kernel_size, stride, lhs_dilation, rhs_dilation
        Size of the kernel, steps between output positions, and distance between elements of the
        input and of the kernel; each for all spatial axes, or a tuple with one for each.
    padding
        ``"SAME"``, ``"VALID"``, an integer for both sides of all spatial axes, a tuple with one
        for each axis (with a single axis: the pair ``(low, high)``), or a sequence of such pairs.
    groups
        Number of groups that the channels are divided into.
    w_init
        Initial kernel [*kernel_size, input channels / groups, output channels]: a function of the
        shape, or a value.
    b_init
        Initial bias, the same way; ``None`` for no bias.
    w_mask
        Mask that multiplies the kernel, the same way; ``None`` for none.
    channel_first
        Whether inputs and outputs have their channels in front of the spatial axes.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    key
        An integer or a JAX key that makes the initial parameters reproducible; ``None`` draws from
        ``brainstate.random``.

    Attributes
    ----------
    weight
        One ``ParamState`` holding ``{"weight": kernel, "bias": bias}``, the bias with axes of size
        one for the spatial axes, as ``brainstate.nn`` keeps it.
    out_size
        Size of the output of one example.

    Raises
    ------
    ValueError, TypeError
        For impossible sizes, groups or paddings, or an initial value of another shape.

    Notes
    -----
    ``update(x)`` takes a batch or one example (which becomes a batch of one for the operation), and
    multiplies the units of ``x`` and of the kernel.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.Conv1d((16, 3), 4, 3, stride=2, key=0)
    >>> layer(jnp.ones((8, 16, 3))).shape, layer.out_size
    ((8, 8, 4), (8, 4))
    """


class Conv2d(_Convolution, brainstate.nn.Conv2d):
    """Convolution along two axes, trained by eligibility traces.

    A drop-in for ``brainstate.nn.Conv2d`` that computes through :func:`braintrace.conv`.

    Attributes and errors are those of :class:`Conv1d`.

    Parameters
    ----------
    in_size
        Size of one example: (height, width, channels), or (channels, height, width) with
        ``channel_first``.
    out_channels
        Number of output channels.
    kernel_size, stride, lhs_dilation, rhs_dilation, padding, groups
        The geometry, as :class:`Conv1d` takes it.
    w_init, b_init, w_mask
        Initial kernel [*kernel_size, input channels / groups, output channels] and bias, and a mask
        that multiplies the kernel: functions of the shape, or values; ``None`` for no bias or mask.
    channel_first, name, param_type, key
        As :class:`Conv1d` takes them.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.Conv2d((16, 16, 3), 4, 3, stride=2, key=0)
    >>> layer(jnp.ones((8, 16, 16, 3))).shape, layer.out_size
    ((8, 8, 8, 4), (8, 8, 4))
    """


class Conv3d(_Convolution, brainstate.nn.Conv3d):
    """Convolution along three axes, trained by eligibility traces.

    A drop-in for ``brainstate.nn.Conv3d`` that computes through :func:`braintrace.conv`.

    Attributes and errors are those of :class:`Conv1d`.

    Parameters
    ----------
    in_size
        Size of one example: (depth, height, width, channels), or with the channels in front of
        them with ``channel_first``.
    out_channels
        Number of output channels.
    kernel_size, stride, lhs_dilation, rhs_dilation, padding, groups
        The geometry, as :class:`Conv1d` takes it.
    w_init, b_init, w_mask
        Initial kernel [*kernel_size, input channels / groups, output channels] and bias, and a mask
        that multiplies the kernel: functions of the shape, or values; ``None`` for no bias or mask.
    channel_first, name, param_type, key
        As :class:`Conv1d` takes them.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.Conv3d((4, 6, 6, 3), 4, 3, stride=2, key=0)
    >>> layer(jnp.ones((8, 4, 6, 6, 3))).shape, layer.out_size
    ((8, 2, 3, 3, 4), (2, 3, 3, 4))
    """
