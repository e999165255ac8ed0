# SPDX-License-Identifier: Apache-2.0
"""The primitive ``etp_conv``: a convolution of a batch in one to three dimensions.

It has one layout, channels last: ``x`` [B, *X, C], ``weight`` [*K, C / groups, O], ``bias`` [O] and
``y`` [B, *Y, O], where ``X``, ``K`` and ``Y`` are the sizes along the spatial axes of the input, of
the kernel and of the output. Operands are ``(x, weight)`` or ``(x, weight, bias)``; the parameter
``has_bias`` says which. All other parameters are tuples with an entry per spatial axis, ``padding``
one of pairs, except ``groups``.

One kernel feeds every output position, and each position of the hidden state has a transition of
its own, so the exact trace has an entry for each position and parameter::

    eps[b, y, k, i, o] = sum_t  D..D f^t[b, y, o]  x^t[b, y * stride + k * dilation, i]

that is [B, *Y, *shape of the parameter] for the kernel as for the bias. The positions are summed
when a trace is solved, not before.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from braintrace.plugin_api import ETPPrimitiveSpec

Arrays = dict[str, jax.Array]
Pairs = tuple[tuple[int, int], ...]
Sizes = tuple[int, ...]


class Geometry(NamedTuple):
    """The parameters of the primitive but ``has_bias``."""

    strides: Sizes
    padding: Pairs
    lhs_dilation: Sizes
    rhs_dilation: Sizes
    groups: int


def _conv(x: Any, kernel: Any, *bias: Any, has_bias: bool, **geometry: Any) -> jax.Array:
    y = _convolve(x, kernel, Geometry(**geometry))
    return y + jnp.broadcast_to(bias[0], y.shape) if has_bias else y


def _trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"weight": 1, "bias": 2} if params["has_bias"] else {"weight": 1}


def _xy_to_dw(
    x: jax.Array, dy: jax.Array, weights: Arrays, has_bias: bool, **geometry: Any
) -> Arrays:
    """The transposed convolution, again one convolution; and a sum over examples and positions."""
    pull = jax.linear_transpose(
        lambda kernel: _in_kernel(x, kernel, Geometry(**geometry)), weights["weight"]
    )
    cotangents = {"weight": pull(dy)[0]}
    if has_bias:
        cotangents["bias"] = dy.sum(tuple(range(dy.ndim - 1)))
    return cotangents


# --- the convolution and its derivatives --------------------------------------------------------
#
# Inside loops, XLA's CPU backend has a fast convolution only for channels-last arrays with a kernel
# [*K, I, O]; others run 20 to 80 times slower. The same convolution is therefore written in three
# ways: one that is fast itself, and two whose transposes, with respect to the input and to the
# kernel, are fast.


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(x: Any, kernel: Any, geometry: Geometry) -> jax.Array:
    image, weight = _channels_last(x.ndim)
    return _lax_conv(x, kernel, geometry, (image, weight, image), features=geometry.groups)


@partial(_convolve.defjvp, symbolic_zeros=True)
def _tangent(geometry: Geometry, primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_in_x(dx, kernel, geometry))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(_in_kernel(x, dkernel, geometry))
    y = _convolve(x, kernel, geometry)
    return y, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(y)


def _in_x(x: Any, kernel: Any, geometry: Geometry) -> jax.Array:
    """The convolution, with a fast transpose with respect to ``x``: a kernel [*K, O, I]."""
    image, weight = _channels_last(x.ndim)
    if geometry.groups == 1:
        kernel, weight = kernel.swapaxes(-1, -2), (weight[1], weight[0], *weight[2:])
    return _lax_conv(x, kernel, geometry, (image, weight, image), features=geometry.groups)


def _in_kernel(x: Any, kernel: Any, geometry: Geometry) -> jax.Array:
    """The convolution, with a fast transpose with respect to the kernel.

    That transpose convolves ``x`` [C / groups, *X, groups B] with ``dy`` [*Y, B, O]: examples take
    the part of channels, and groups of the channels become groups of the batch.
    """
    last, groups = x.ndim - 1, geometry.groups
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    x = x.transpose(last + 1, *range(1, last + 1), 0)
    x = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    spatial = range(1, last)
    numbers = ((last, 0, *spatial), (last, 0, *spatial), (last - 1, last, *range(last - 1)))
    kernel = jnp.moveaxis(kernel, -2, 0)
    y = _lax_conv(x, kernel, geometry, numbers, batches=groups)
    return jnp.moveaxis(y, -2, 0)


def _channels_last(ndim: int) -> tuple[Sizes, Sizes]:
    """Axes of batch, channels and space, and of output channels, input channels and space."""
    last = ndim - 1
    return (0, last, *range(1, last)), (last, last - 1, *range(last - 1))


def _lax_conv(
    x: Any, kernel: Any, geometry: Geometry, numbers: Any, features: int = 1, batches: int = 1
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        geometry.lhs_dilation,
        geometry.rhs_dilation,
        dimension_numbers=jax.lax.ConvDimensionNumbers(*numbers),
        feature_group_count=features,
        batch_group_count=batches,
    )


# --- the trace ----------------------------------------------------------------------------------


def _init_drtrl(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros [B, *Y, *shape of the parameter, S]."""
    y = y_var.aval
    return {
        key: jnp.zeros((*y.shape[:-1], *var.aval.shape, num_state), y.dtype)
        for key, var in weight_vars.items()
    }


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B, *Y, O, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


def _along(dy: jax.Array, ndim: int) -> jax.Array:
    """[B, *Y, O] with axes of size one for those of the kernel, in front of the channels."""
    return dy.reshape(*dy.shape[:-1], *(1,) * (ndim - dy.ndim), dy.shape[-1])


def _yw_to_w(dy: jax.Array, trace: Arrays, **params: Any) -> Arrays:
    """An entry feeds the output position and the channel that it belongs to."""
    return {key: leaf * _along(dy, leaf.ndim) for key, leaf in trace.items()}


def _instant_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, has_bias: bool, **geometry: Any
) -> Arrays:
    """What each position has read of ``x``, times its factor."""
    read = _patches(x, weights["weight"].shape, f.shape, Geometry(**geometry))
    increments = {"weight": read * _along(f, read.ndim)}
    if has_bias:
        increments["bias"] = f
    return increments


def _solve_drtrl(signal: jax.Array, trace: Arrays, weights: Arrays, **params: Any) -> Arrays:
    """The trace times the signal of its position, summed over examples and positions."""
    axes = tuple(range(signal.ndim - 1))
    return {key: leaf.sum(axes) for key, leaf in _yw_to_w(signal, trace).items()}


def _patches(x: jax.Array, kernel: Sizes, y: Sizes, geometry: Geometry) -> jax.Array:
    """``d y / d weight`` [B, *Y, *K, C / groups, O], with one channel ``O`` when all are alike.

    Elements are read, not multiplied by ones and zeros, so numbers that are not finite stay where
    they are.
    """
    strides, padding, lhs_dilation, rhs_dilation, groups = geometry
    spatial = len(strides)
    config = [(0, 0, 0), *((*p, d - 1) for p, d in zip(padding, lhs_dilation, strict=True))]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [*config, (0, 0, 0)])
    for axis in range(spatial):
        starts = strides[axis] * np.arange(y[1 + axis])
        offsets = rhs_dilation[axis] * np.arange(kernel[axis])
        x = jnp.take(x, starts[:, None] + offsets, axis=1 + 2 * axis, mode="clip")
    positions, taps = range(1, 2 * spatial, 2), range(2, 2 * spatial + 1, 2)
    x = x.transpose(0, *positions, *taps, 2 * spatial + 1)
    x = x.reshape(*x.shape[:-1], groups, kernel[-2]).swapaxes(-1, -2)
    return x if groups == 1 else jnp.repeat(x, kernel[-1] // groups, axis=-1)


ETP_CONV = ETPPrimitiveSpec(
    name="etp_conv",
    impl=_conv,
    yw_to_w=_yw_to_w,
    xy_to_dw=_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    trainable_invars_fn=_trainable,
    batched=True,
    instant_drtrl=_instant_drtrl,
    solve_drtrl=_solve_drtrl,
)
