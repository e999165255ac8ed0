# SPDX-License-Identifier: Apache-2.0
"""The primitive ``etp_conv``: a convolution of a batch in one to three dimensions.

It has one layout, channels last: ``x`` [B, *X, C], ``weight`` [*K, C / groups, O], ``bias`` [O] and
``y`` [B, *Y, O], where ``X``, ``K`` and ``Y`` are the sizes along the spatial axes of the input, of
the kernel and of the output. Operands are ``(x, weight)`` or ``(x, weight, bias)``; the parameter
``has_bias`` says which. All other parameters are tuples with an entry per spatial axis, ``padding``
one of pairs, except ``groups``.

One kernel feeds every output position, and each position of the hidden state has a transition of
its own, so the exact trace has an entry for each position and parameter::

    eps[b, y, o, k, i] = sum_t  D..D f^t[b, y, o]  x^t[b, y * stride + k * dilation, i]

that is [B, *Y, O, *K, C / groups] for the kernel and [B, *Y, O] for the bias. The positions are
summed when a trace is solved, not before. What a position reads stands last: over a block of steps
the trace of a position is one product of factors [O, steps] and of what was read [steps, *K, I],
which is fastest with the longer axis last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from braintrace.plugin_api import ETPPrimitiveSpec

Arrays = dict[str, jax.Array]
Pairs = tuple[tuple[int, int], ...]
Sizes = tuple[int, ...]

#: How many elements of ``x`` are transposed at a time for the gradient of a kernel.
PART = 2**19
#: How many positions of a trace are added up at a time, and from how many numbers on that pays.
TOGETHER = 16
LARGE = 2**16
#: For how many steps what positions have read is held.
STEPS = 64


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
    return {"weight": 1, "bias": 2} if params.get("has_bias") else {"weight": 1}


def _xy_to_dw(
    x: jax.Array, dy: jax.Array, weights: Arrays, has_bias: bool, **geometry: Any
) -> Arrays:
    """The transposed convolution, again one convolution; and a sum over examples and positions.

    Several of them side by side, of the examples of several devices, are products instead.
    """
    like = jax.ShapeDtypeStruct(weights["weight"].shape, weights["weight"].dtype)

    def kernel(x: jax.Array, dy: jax.Array) -> jax.Array:
        convolve = partial(_in_kernel, x, geometry=Geometry(**geometry))
        return jax.linear_transpose(convolve, like)(dy)[0]  # type: ignore[no-any-return]

    @jax.custom_batching.custom_vmap
    def of_all(x: jax.Array, dy: jax.Array) -> jax.Array:
        return _sum_of_parts(kernel, max(1, PART // math.prod(x.shape[1:])), x, dy)

    @of_all.def_vmap
    def of_each(size: int, mapped: list[bool], x: jax.Array, dy: jax.Array) -> Any:
        axes = tuple(0 if own else None for own in mapped)
        own = partial(_by_taps, kernel=like, geometry=Geometry(**geometry))
        return jax.vmap(own, axes, axis_size=size)(x, dy), True

    cotangents = {"weight": of_all(x, dy)}
    if has_bias:
        cotangents["bias"] = dy.sum(tuple(range(dy.ndim - 1)))
    return cotangents


def _by_taps(x: jax.Array, dy: jax.Array, kernel: Any, geometry: Geometry) -> jax.Array:
    """The gradient of a kernel, one product for each of its taps.

    XLA sends the examples of grouped convolutions from device to device, and not those of products.
    """
    strides, padding, lhs_dilation, rhs_dilation, groups = geometry
    *taps, inputs, outputs = kernel.shape
    config = [(*p, d - 1) for p, d in zip(padding, lhs_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    spans = [s * (n - 1) + 1 for s, n in zip(strides, dy.shape[1:-1], strict=True)]
    dy, steps = dy.reshape(-1, groups, outputs // groups), (1, *strides, 1)

    def one(tap: Sizes) -> jax.Array:
        first = [k * d for k, d in zip(tap, rhs_dilation, strict=True)]
        last = [k + n for k, n in zip(first, spans, strict=True)]
        ends = (0, *first, 0), (x.shape[0], *last, x.shape[-1])
        read = jax.lax.slice(x, *ends, steps).reshape(-1, groups, inputs)
        return jnp.einsum("pgi,pgo->igo", read, dy).reshape(inputs, outputs)

    found = [one(tap) for tap in itertools.product(*map(range, taps))]
    return jnp.stack(found).reshape(kernel.shape).astype(kernel.dtype)


def _sum_of_parts(
    rule: Callable[[jax.Array, jax.Array], jax.Array], size: int, x: jax.Array, y: jax.Array
) -> jax.Array:
    """``rule(x, y)``, which sums over the leading axis, from ``size`` entries of it at a time.

    What the rule makes of its arguments then takes the memory of a part, which stays in a cache.
    """
    count = x.shape[0]
    if count <= size:
        return rule(x, y)

    def part(start: Any, length: int) -> jax.Array:
        chosen = (jax.lax.dynamic_slice_in_dim(array, start, length) for array in (x, y))
        return rule(*chosen)

    like = jax.eval_shape(lambda: part(0, size))
    wide = jnp.promote_types(like.dtype, jnp.float32)  # a long sum in half precision stops growing
    rest = count % size
    first = part(0, rest).astype(wide) if rest else jnp.zeros(like.shape, wide)
    starts = rest + size * jnp.arange(count // size)
    total, _ = jax.lax.scan(lambda total, start: (total + part(start, size), None), first, starts)
    return total.astype(like.dtype)


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
    """Zeros: ``weight`` [B, *Y, O, *K, C / groups, S], ``bias`` [B, *Y, O, S]."""
    y = y_var.aval
    return {
        key: jnp.zeros((*y.shape, *var.aval.shape[:-1], num_state), y.dtype)
        for key, var in weight_vars.items()
    }


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B, *Y, O, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


def _along(dy: jax.Array, ndim: int) -> jax.Array:
    """[B, *Y, O] with axes of size one for what the position has read."""
    return dy.reshape(*dy.shape, *(1,) * (ndim - dy.ndim))


def _yw_to_w(dy: jax.Array, trace: Arrays, **params: Any) -> Arrays:
    """An entry feeds the output position and the channel that it belongs to."""
    return {key: leaf * _along(dy, leaf.ndim) for key, leaf in trace.items()}


def _instant_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, has_bias: bool, **geometry: Any
) -> Arrays:
    """What each position has read of ``x``, times its factor."""
    read = jax.vmap(lambda x_b: _read(x_b, weights["weight"].shape, f.shape, Geometry(**geometry)))
    increments = {"weight": _per_channel(read(x), f.shape[-1]) * _along(f, 2 * x.ndim - 1)}
    if has_bias:
        increments["bias"] = f
    return increments


def _increments_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, has_bias: bool, **geometry: Any
) -> Arrays:
    """Per example and position, one product of factors and of what was read, over the steps.

    What has been read in so many steps is held at once, and no more than the trace takes.
    """
    kernel, channels = weights["weight"].shape, f.shape[-1]

    def of_steps(x: jax.Array, f: jax.Array) -> jax.Array:
        read = _read(jnp.moveaxis(x, 0, -2), kernel, f.shape, Geometry(**geometry))
        return _product(read, jnp.moveaxis(f, 0, -2))

    def of_example(x: jax.Array, f: jax.Array) -> jax.Array:
        return _sum_of_parts(of_steps, min(STEPS, channels * f.shape[0]), x, f)

    increments = {"weight": jax.vmap(of_example, in_axes=1)(x, f)}
    if has_bias:
        increments["bias"] = f.sum(0)
    return increments


def _product(read: jax.Array, f: jax.Array) -> jax.Array:
    """``read`` [*Y, steps, *K, groups, I] and ``f`` [*Y, steps, O] to [*Y, O, *K, I]."""
    *positions, steps, channels = f.shape
    *taps, groups, inputs = read.shape[len(positions) + 1 :]
    f = f.reshape(-1, steps, groups, channels // groups)
    read = read.reshape(-1, steps, math.prod(taps), groups, inputs)
    return jnp.einsum("ptgo,ptkgi->pgoki", f, read).reshape(*positions, channels, *taps, inputs)


def _per_channel(read: jax.Array, channels: int) -> jax.Array:
    """[B, *Y, *K, groups, I] to [B, *Y, O, *K, I], with one channel when all are alike."""
    groups, positions = read.shape[-2], read.ndim // 2 - 1
    read = jnp.moveaxis(read, -2, positions + 1)
    return read if groups == 1 else jnp.repeat(read, channels // groups, axis=positions + 1)


def _solve_drtrl(signal: jax.Array, trace: Arrays, weights: Arrays, **params: Any) -> Arrays:
    """The trace times the signal of its position, summed over examples and positions."""
    solved = {key: _met(signal, leaf) for key, leaf in trace.items()}
    return solved | {"weight": jnp.moveaxis(solved["weight"], 0, -1)}


def _met(signal: jax.Array, leaf: jax.Array) -> jax.Array:
    """``signal`` [B, *Y, O] and ``leaf`` [B, *Y, O, ..] to [O, ..].

    XLA's CPU backend reads a large array four times as fast when the sum, which stays in a cache,
    takes some positions after the other.
    """
    axes = tuple(range(signal.ndim - 1))

    def whole(signal: jax.Array, leaf: jax.Array) -> jax.Array:
        return (leaf * _along(signal, leaf.ndim)).sum(axes)

    def in_order(signal: jax.Array, leaf: jax.Array) -> jax.Array:
        rows = tuple(v.reshape(-1, *v.shape[len(axes) :]) for v in (signal, leaf))
        first = len(rows[0]) % TOGETHER

        def add(total: jax.Array, start: Any) -> tuple[jax.Array, None]:
            for k in range(TOGETHER):
                s, v = (jax.lax.dynamic_index_in_dim(u, start + k, keepdims=False) for u in rows)
                total = total + v * _along(s, v.ndim)
            return total, None

        total = (rows[1][:first] * _along(rows[0][:first], rows[1].ndim)).sum(0)
        return jax.lax.scan(add, total, jnp.arange(first, len(rows[0]), TOGETHER))[0]

    if leaf.size < LARGE or jax.device_count() > 1:  # else each device adds up its own examples
        return whole(signal, leaf)
    return jax.lax.platform_dependent(signal, leaf, cpu=in_order, default=whole)


def _read(x: jax.Array, kernel: Sizes, y: Sizes, geometry: Geometry) -> jax.Array:
    """What each output position reads: [*X, *N, C] to [*Y, *N, *K, groups, C / groups].

    Elements are read, not multiplied by ones and zeros, so numbers that are not finite stay where
    they are.
    """
    strides, padding, lhs_dilation, rhs_dilation, groups = geometry
    spatial, other = len(strides), x.ndim - len(strides)
    config = [(*p, d - 1) for p, d in zip(padding, lhs_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [*config, *((0, 0, 0),) * other])
    for axis in reversed(range(spatial)):  # whole rows of the kernel are copied in the end
        span = strides[axis] * (y[axis - spatial - 1] - 1) + 1
        starts = (tap * rhs_dilation[axis] for tap in range(kernel[axis]))
        taps = [jax.lax.slice_in_dim(x, k, k + span, strides[axis], axis) for k in starts]
        x = jnp.stack(taps, spatial + other - 1)
    return x.reshape(*x.shape[:-1], groups, kernel[-2])


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
    increments_drtrl=_increments_drtrl,
    solve_drtrl=_solve_drtrl,
)
