# SPDX-License-Identifier: Apache-2.0
"""The primitives ``etp_lora_mv`` and ``etp_lora_mm``: ``y = alpha x B A + b``, one and many.

Operands are ``(x, B, A)`` or ``(x, B, A, bias)``; the parameters are the number ``alpha`` and
``has_bias``. Shapes: ``x`` [N?, in], ``B`` [in, rank], ``A`` [rank, out], ``bias`` [out], ``y``
[N?, out], where N counts the examples of a batch.

Position ``o`` of ``y`` reads column ``o`` of ``A``, so the trace of ``A`` has its shape. It reads
all of ``B``, so ``B`` has no trace of its own shape: what is kept is the trace of the product
``B A``, whose column ``o`` alone feeds position ``o``. With ``G`` [in, out] its contraction with a
signal, the chain rule gives ``dB = alpha G A^T``. That trace holds inputs and factors only, and
``alpha`` enters once, at the end.

Within a block there are no traces, and nothing of the size of ``B A`` is formed: ``xy_to_dw`` goes
through the rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec, sum_of_outer

Arrays = dict[str, jax.Array]


def _low_rank(x: Any, B: Any, A: Any, *bias: Any, alpha: float, has_bias: bool) -> jax.Array:
    y = jnp.matmul(_narrow(x, B, alpha), A)
    return y + jnp.broadcast_to(bias[0], y.shape) if has_bias else y


def _narrow(x: Any, B: Any, alpha: float) -> jax.Array:
    """``alpha x B`` [N?, rank]: the input of ``A``."""
    return alpha * jnp.matmul(x, B)


def _trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"lora_b": 1, "lora_a": 2} | ({"bias": 3} if params.get("has_bias") else {})


def _init_drtrl(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros: ``lora_b`` [N?, in, out, S], ``lora_a`` [N?, rank, out, S], ``bias`` [N?, out, S]."""
    rows = {
        "lora_b": x_var.aval.shape[-1:],
        "lora_a": weight_vars["lora_a"].aval.shape[:1],
        "bias": (),
    }
    *batch, out = y_var.aval.shape
    return {
        key: jnp.zeros((*batch, *rows[key], out, num_state), var.aval.dtype)
        for key, var in weight_vars.items()
    }


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [N?, out, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


def _yw_to_w(dy: jax.Array, trace: Arrays, **params: Any) -> Arrays:
    """Entry ``[.., o]`` of every trace feeds position ``o`` of ``y``."""
    wide = dy[..., None, :]
    return {key: leaf * (dy if key == "bias" else wide) for key, leaf in trace.items()}


def _instant_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, *, alpha: float, has_bias: bool
) -> Arrays:
    """``x (x) f`` for the product ``B A``, ``alpha x B (x) f`` for ``A``, example by example."""

    def outer(rows: jax.Array) -> jax.Array:
        return rows[..., :, None] * f[..., None, :]

    increment = {"lora_b": outer(x), "lora_a": outer(_narrow(x, weights["lora_b"], alpha))}
    return increment | ({"bias": f} if has_bias else {})


def _increments_drtrl(
    x: jax.Array, f: jax.Array, weights: Arrays, *, alpha: float, has_bias: bool
) -> Arrays:
    """The same over a leading axis of steps, as one product for each trace and example."""

    def product(rows: jax.Array) -> jax.Array:
        return jnp.einsum("k...i,k...o->...io", rows, f)

    increments = {"lora_b": product(x), "lora_a": product(_narrow(x, weights["lora_b"], alpha))}
    return increments | ({"bias": f.sum(0)} if has_bias else {})


# --- one example -----------------------------------------------------------------------------


def _mv_xy_to_dw(
    x: jax.Array, dy: jax.Array, weights: Arrays, *, alpha: float, has_bias: bool
) -> Arrays:
    B, A = weights["lora_b"], weights["lora_a"]
    cotangents = {
        "lora_b": x[:, None] * (alpha * jnp.matmul(A, dy))[None, :],
        "lora_a": _narrow(x, B, alpha)[:, None] * dy[None, :],
    }
    return cotangents | ({"bias": dy} if has_bias else {})


def _mv_solve_drtrl(
    signal: jax.Array, trace: Arrays, weights: Arrays, *, alpha: float, has_bias: bool
) -> Arrays:
    """``G A^T`` is one product with ``A`` scaled by the signal; ``G`` itself is not needed."""
    solved = _yw_to_w(signal, {key: leaf for key, leaf in trace.items() if key != "lora_b"})
    if "lora_b" in trace:
        solved["lora_b"] = alpha * jnp.matmul(
            trace["lora_b"], (weights["lora_a"] * signal[None, :]).T
        )
    return solved


ETP_LORA_MV = ETPPrimitiveSpec(
    name="etp_lora_mv",
    impl=_low_rank,
    yw_to_w=_yw_to_w,
    xy_to_dw=_mv_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    trainable_invars_fn=_trainable,
    batched_counterpart="etp_lora_mm",
    instant_drtrl=_instant_drtrl,
    increments_drtrl=_increments_drtrl,
    solve_drtrl=_mv_solve_drtrl,
)


# --- a batch of examples ---------------------------------------------------------------------


def _mm_xy_to_dw(
    x: jax.Array, dy: jax.Array, weights: Arrays, *, alpha: float, has_bias: bool
) -> Arrays:
    B, A = weights["lora_b"], weights["lora_a"]
    # without a barrier XLA writes these products with their results transposed, which takes longer
    ahead, behind = jax.lax.optimization_barrier((_narrow(x, B, alpha), jnp.matmul(dy, A.T)))
    cotangents = {
        "lora_b": alpha * sum_of_outer(x, behind),
        "lora_a": sum_of_outer(ahead, dy),
    }
    return cotangents | ({"bias": dy.sum(0)} if has_bias else {})


def _mm_solve_drtrl(
    signal: jax.Array, trace: Arrays, weights: Arrays, *, alpha: float, has_bias: bool
) -> Arrays:
    """As for one example, summed over examples: for ``B`` after its product, which is narrow."""
    one = partial(_mv_solve_drtrl, weights=weights, alpha=alpha, has_bias=has_bias)
    return {key: leaf.sum(0) for key, leaf in jax.vmap(one)(signal, trace).items()}


ETP_LORA_MM = ETPPrimitiveSpec(
    name="etp_lora_mm",
    impl=_low_rank,
    yw_to_w=_yw_to_w,
    xy_to_dw=_mm_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    trainable_invars_fn=_trainable,
    batched=True,
    instant_drtrl=_instant_drtrl,
    increments_drtrl=_increments_drtrl,
    solve_drtrl=_mm_solve_drtrl,
)
