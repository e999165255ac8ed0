# SPDX-License-Identifier: Apache-2.0
"""What the operations compute, and the rules of their traces.

Receptive fields have every rule written by hand. Dendrites have an implementation and the places
of their weights, no more: their rules are derived, exact, and slower.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec

Arrays = dict[str, jax.Array]


# --- receptive fields: x [B?, in], centres and widths [in, K], y [B?, in, K] ------------------


def _fields(x: Any, centres: Any, widths: Any) -> jax.Array:
    return jnp.exp(-(((x[..., None] - centres) / widths) ** 2) / 2)


def _fields_trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"centres": 1, "widths": 2}


def _yw_to_w(dy: jax.Array, trace: Arrays) -> Arrays:
    """Centre and width ``[i, k]`` feed position ``[i, k]`` of ``y``."""
    return {key: leaf * dy for key, leaf in trace.items()}


def _xy_to_dw(x: jax.Array, dy: jax.Array, weights: Arrays) -> Arrays:
    """``y d/w`` for the centres and ``y d**2/w`` for the widths, at the distance ``d`` in widths.

    ``weights`` are what they are now: the operation is not linear in them.
    """
    distance = (x[..., None] - weights["centres"]) / weights["widths"]
    moved = dy * jnp.exp(-(distance**2) / 2) * distance / weights["widths"]
    examples = tuple(range(x.ndim - 1))
    return {"centres": moved.sum(examples), "widths": (moved * distance).sum(examples)}


def _init_drtrl(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros [B?, in, K, S] for each weight."""
    return {key: _init_pp(x_var, y_var, weight_vars, num_state) for key in weight_vars}


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B?, in, K, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


_RULES: dict[str, Any] = {
    "yw_to_w": _yw_to_w,
    "xy_to_dw": _xy_to_dw,
    "init_drtrl": _init_drtrl,
    "init_pp": _init_pp,
    "trainable_invars_fn": _fields_trainable,
}
FIELDS_BATCHED = ETPPrimitiveSpec("receptive_fields_batched", _fields, batched=True, **_RULES)
FIELDS = ETPPrimitiveSpec(
    "receptive_fields", _fields, batched_counterpart="receptive_fields_batched", **_RULES
)


# --- dendrites: x [in], branches [in, K, out], gains [K, out], y [out] -----------------------


def _dendrites(x: Any, branches: Any, gains: Any) -> jax.Array:
    return (gains * jnp.tanh(jnp.tensordot(x, branches, 1))).sum(0)


def _dendrites_trainable(params: dict[str, Any]) -> dict[str, int]:
    return {"branches": 1, "gains": 2}


DENDRITES = ETPPrimitiveSpec("dendrites", _dendrites, trainable_invars_fn=_dendrites_trainable)
