# SPDX-License-Identifier: Apache-2.0
"""What the operations compute, and the rules of their traces.

Grouped products have every rule written by hand. Dendrites have an implementation and the places
of their weights, no more: their rules are derived, exact, and slower.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec

Arrays = dict[str, jax.Array]


# --- grouped products: x [B?, G, in], weight [G, in, out], y [B?, G, out] --------------------


def _grouped(x: Any, weight: Any) -> jax.Array:
    return jnp.einsum("...gi,gio->...go", x, weight)


def _yw_to_w(dy: jax.Array, trace: Arrays) -> Arrays:
    """Column ``o`` of the weight of group ``g`` feeds position ``[g, o]`` of ``y``."""
    return {"weight": trace["weight"] * dy[..., None, :]}


def _xy_to_dw(x: jax.Array, dy: jax.Array, weights: Arrays) -> Arrays:
    return {"weight": jnp.einsum("...gi,...go->gio", x, dy)}


def _init_drtrl(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros [B?, G, in, out, S]."""
    batch, weight = y_var.aval.shape[:-2], weight_vars["weight"].aval
    return {"weight": jnp.zeros((*batch, *weight.shape, num_state), y_var.aval.dtype)}


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B?, G, out, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


GROUPED_MM = ETPPrimitiveSpec(
    name="grouped_mm",
    impl=_grouped,
    yw_to_w=_yw_to_w,
    xy_to_dw=_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    batched=True,
)

GROUPED_MV = ETPPrimitiveSpec(
    name="grouped_mv",
    impl=_grouped,
    yw_to_w=_yw_to_w,
    xy_to_dw=_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    batched_counterpart="grouped_mm",
)


# --- dendrites: x [in], branches [in, K, out], gains [K, out], y [out] -----------------------


def _dendrites(x: Any, branches: Any, gains: Any) -> jax.Array:
    return (gains * jnp.tanh(jnp.tensordot(x, branches, 1))).sum(0)


def _dendrites_trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"branches": 1, "gains": 2}


DENDRITES = ETPPrimitiveSpec("dendrites", _dendrites, trainable_invars_fn=_dendrites_trainable)
