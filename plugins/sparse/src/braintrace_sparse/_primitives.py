# SPDX-License-Identifier: Apache-2.0
"""The primitives ``etp_sp_mv`` and ``etp_sp_mm``: ``y = x W + b`` with a sparse ``W``.

Operands are ``(x, weight, row, col)`` or ``(x, weight, bias, row, col)``; the parameter
``has_bias`` says which, and ``num_out`` is the size of ``y``. Stored value ``k`` of the weight is
added at ``W[row[k], col[k]]``; one whose indices are past the end stands for nothing.
Shapes: ``x`` [B?, in], ``weight``, ``row``, ``col`` [nnz], ``bias`` [out], ``y`` [B?, out].
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec, sum_of_outer

Arrays = dict[str, jax.Array]
Indices = tuple[jax.Array, jax.Array]

#: Through a dense matrix if that is at most so many times larger than the stored values, ...
DENSE_SIZE = 32
#: ... and if so many examples share it: measured on CPU, see the README.
DENSE_BATCH = 8


def _at(array: jax.Array, index: jax.Array) -> jax.Array:
    """Entries along the last axis; zero for an index past its end."""
    return array.at[..., index].get(mode="fill", fill_value=0)


def _through_dense(examples: int, weight: Any, num_in: int, num_out: int) -> bool:
    small = num_in * num_out <= DENSE_SIZE * weight.shape[0]
    return small and examples >= DENSE_BATCH


def _wide(array: jax.Array) -> jax.Array:
    """In the dtype that sums are made in: float32 at least."""
    return array if jnp.finfo(array.dtype).bits > 32 else array.astype(jnp.float32)


def _trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"weight": 1, "bias": 2} if params.get("has_bias") else {"weight": 1}


def _plus_bias(y: jax.Array, rest: tuple[Any, ...]) -> jax.Array:
    *bias, _, _ = rest
    return y + jnp.broadcast_to(bias[0], y.shape) if bias else y


# --- traces, for one example and for a batch ---------------------------------------------------


def _init_drtrl(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros [B?, nnz, S] for the weight and [B?, out, S] for the bias."""
    batch = y_var.aval.shape[:-1]
    return {
        key: jnp.zeros((*batch, *var.aval.shape, num_state), var.aval.dtype)
        for key, var in weight_vars.items()
    }


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B?, out, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


def _yw_to_w(dy: jax.Array, trace: Arrays, *, constants: Indices, **params: Any) -> Arrays:
    """Stored value ``k``, and entry ``col[k]`` of the bias, feed position ``col[k]`` of ``y``.

    The trace of padding is zero, whatever position it is multiplied with.
    """
    _, col = constants
    scaled = {"weight": trace["weight"] * dy.at[..., col].get(mode="clip")}
    if "bias" in trace:
        scaled["bias"] = trace["bias"] * dy
    return scaled


def _instant_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, *, constants: Indices, **params: Any
) -> Arrays:
    """``x[row] f[col]``: the increments of a step take no more memory than the trace."""
    row, col = constants
    increments = {"weight": _at(x, row) * _at(f, col)}
    if "bias" in weights:
        increments["bias"] = f
    return increments


# --- one example -------------------------------------------------------------------------------


def _mv(x: Any, weight: Any, *rest: Any, has_bias: bool, num_out: int) -> jax.Array:
    *_, row, col = rest
    terms = _wide(_at(x, row) * weight)
    return _plus_bias(jax.ops.segment_sum(terms, col, num_out).astype(x.dtype), rest)


def _mv_xy_to_dw(
    x: jax.Array, dy: jax.Array, weights: Arrays, *, constants: Indices, **params: Any
) -> Arrays:
    return _instant_drtrl(x, dy, weights, constants=constants)


def _mv_increments_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, *, constants: Indices, **params: Any
) -> Arrays:
    """Steps are to one example what examples are to one step."""
    return _mm_xy_to_dw(x, f, weights, constants=constants)


ETP_SP_MV = ETPPrimitiveSpec(
    name="etp_sp_mv",
    impl=_mv,
    yw_to_w=_yw_to_w,
    xy_to_dw=_mv_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    instant_drtrl=_instant_drtrl,
    increments_drtrl=_mv_increments_drtrl,
    trainable_invars_fn=_trainable,
    batched_counterpart="etp_sp_mm",
)


# --- a batch of examples -----------------------------------------------------------------------


def _mm(x: Any, weight: Any, *rest: Any, has_bias: bool, num_out: int) -> jax.Array:
    *_, row, col = rest
    examples, num_in = x.shape
    if _through_dense(examples, weight, num_in, num_out):
        dense = jnp.zeros((num_in, num_out), weight.dtype).at[row, col].add(weight, mode="drop")
        return _plus_bias(jnp.matmul(x, dense), rest)
    terms = _wide(_at(x, row).T * weight[:, None])
    return _plus_bias(jax.ops.segment_sum(terms, col, num_out).T.astype(x.dtype), rest)


def _mm_xy_to_dw(
    x: jax.Array, dy: jax.Array, weights: Arrays, *, constants: Indices, **params: Any
) -> Arrays:
    cotangents = {"weight": _sum_of_products(x, dy, weights["weight"], *constants)}
    if "bias" in weights:
        cotangents["bias"] = dy.sum(0)
    return cotangents


def _sum_of_products(
    x: jax.Array, dy: jax.Array, weight: Any, row: jax.Array, col: jax.Array
) -> jax.Array:
    """``sum_b x[b, row] dy[b, col]`` [nnz], without an array [B, nnz]."""
    examples, num_in = x.shape
    if _through_dense(examples, weight, num_in, dy.shape[-1]):
        return sum_of_outer(x, dy).at[row, col].get(mode="fill", fill_value=0)

    def add(total: jax.Array, example: Any) -> tuple[jax.Array, None]:
        x_b, dy_b = example
        return total + _wide(_at(x_b, row) * _at(dy_b, col)), None

    return jax.lax.scan(add, _wide(jnp.zeros_like(weight)), (x, dy))[0].astype(weight.dtype)


def _mm_increments_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, *, constants: Indices, **params: Any
) -> Arrays:
    """Example by example, what the gradient of the values is when steps are a batch."""
    of_example = partial(_mm_xy_to_dw, weights=weights, constants=constants)
    return jax.vmap(of_example, in_axes=1)(x, f)


ETP_SP_MM = ETPPrimitiveSpec(
    name="etp_sp_mm",
    impl=_mm,
    yw_to_w=_yw_to_w,
    xy_to_dw=_mm_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    instant_drtrl=_instant_drtrl,
    increments_drtrl=_mm_increments_drtrl,
    trainable_invars_fn=_trainable,
    batched=True,
)
