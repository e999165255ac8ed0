# SPDX-License-Identifier: Apache-2.0
"""The primitives ``etp_mv`` and ``etp_mm``: ``y = x W + b`` for one example and for a batch.

Operands are ``(x, weight)`` or ``(x, weight, bias)``; the parameter ``has_bias`` says which.
Shapes: ``x`` [B?, in], ``weight`` [in, out], ``bias`` [out], ``y`` [B?, out].
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec, sum_of_outer

Arrays = dict[str, jax.Array]


def _affine(x: Any, weight: Any, *bias: Any, has_bias: bool) -> jax.Array:
    y = jnp.matmul(x, weight)
    return y + jnp.broadcast_to(bias[0], y.shape) if has_bias else y


def _trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"weight": 1, "bias": 2} if params.get("has_bias") else {"weight": 1}


def _init_drtrl(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros [B?, *shape of the parameter, S]: an entry per example, parameter and state."""
    batch = y_var.aval.shape[:-1]
    return {
        key: jnp.zeros((*batch, *var.aval.shape, num_state), var.aval.dtype)
        for key, var in weight_vars.items()
    }


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B?, out, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


# --- one example -----------------------------------------------------------------------------


def _mv_yw_to_w(dy: jax.Array, trace: Arrays, **params: Any) -> Arrays:
    """Column ``o`` of the weight, and entry ``o`` of the bias, feed position ``o`` of ``y``."""
    scaled = {"weight": trace["weight"] * dy[None, :]}
    if "bias" in trace:
        scaled["bias"] = trace["bias"] * dy
    return scaled


def _mv_xy_to_dw(x: jax.Array, dy: jax.Array, weights: Arrays, **params: Any) -> Arrays:
    cotangents = {"weight": x[:, None] * dy[None, :]}
    if "bias" in weights:
        cotangents["bias"] = dy
    return cotangents


ETP_MV = ETPPrimitiveSpec(
    name="etp_mv",
    impl=_affine,
    yw_to_w=_mv_yw_to_w,
    xy_to_dw=_mv_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    trainable_invars_fn=_trainable,
    batched_counterpart="etp_mm",
)


# --- a batch of examples ---------------------------------------------------------------------


def _mm_yw_to_w(dy: jax.Array, trace: Arrays, **params: Any) -> Arrays:
    """As for one example, with the trace of every example kept apart."""
    scaled = {"weight": trace["weight"] * dy[:, None, :]}
    if "bias" in trace:
        scaled["bias"] = trace["bias"] * dy
    return scaled


def _mm_xy_to_dw(x: jax.Array, dy: jax.Array, weights: Arrays, **params: Any) -> Arrays:
    cotangents = {"weight": sum_of_outer(x, dy)}
    if "bias" in weights:
        cotangents["bias"] = dy.sum(0)
    return cotangents


ETP_MM = ETPPrimitiveSpec(
    name="etp_mm",
    impl=_affine,
    yw_to_w=_mm_yw_to_w,
    xy_to_dw=_mm_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    trainable_invars_fn=_trainable,
    batched=True,
)
