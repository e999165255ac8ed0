# SPDX-License-Identifier: Apache-2.0
"""The primitives ``etp_embedding`` and ``etp_embedding_batched``: ``y = weight[x]``.

Shapes: ``x`` integers [B?], from 0 to below ``V``; ``weight`` [V, *W]; ``y`` [B?, *W]. Static
parameters: ``rows``, how many rows of an example its trace holds at most (``R`` below), and
``forget``, whether the row that was read longest ago makes room when there is none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec, Rows

Arrays = dict[str, jax.Array]


def _take(x: Any, weight: Any, rows: int, forget: bool) -> jax.Array:
    return weight[x]


def _rows(x: jax.Array, rows: int, forget: bool) -> Rows:
    overflow = "forget" if forget else "error"
    return Rows(x, forget, f"{rows=}, {overflow=}")


def _xy_to_dw(x: jax.Array, dy: jax.Array, weights: Arrays, rows: int, forget: bool) -> Arrays:
    """Each cotangent added to the row that was read."""
    return {"weight": jnp.zeros(weights["weight"].shape, dy.dtype).at[x].add(dy)}


def _init_drtrl(
    x_var: Any,
    y_var: Any,
    weight_vars: dict[str, Any],
    num_state: int,
    *,
    eqn_params: dict[str, Any],
) -> Arrays:
    """Zeros [B?, R, *W, S]."""
    examples, weight = x_var.aval.shape, weight_vars["weight"].aval
    shape = (*examples, eqn_params["rows"], *weight.shape[1:], num_state)
    return {"weight": jnp.zeros(shape, y_var.aval.dtype)}


def _init_pp(x_var: Any, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [B?, *W, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


def _yw_to_w(dy: jax.Array, trace: Arrays, rows: int, forget: bool) -> Arrays:
    """Entry ``w`` of every row feeds position ``w`` of ``y``."""
    return {"weight": trace["weight"] * dy[None]}


def _yw_to_w_batched(dy: jax.Array, trace: Arrays, rows: int, forget: bool) -> Arrays:
    """As for one example, with the rows of every example kept apart."""
    return {"weight": trace["weight"] * dy[:, None]}


_RULES: dict[str, Any] = {
    "xy_to_dw": _xy_to_dw,
    "init_drtrl": _init_drtrl,
    "init_pp": _init_pp,
    "rows_drtrl": _rows,
}
ETP_EMBEDDING = ETPPrimitiveSpec(
    "etp_embedding",
    _take,
    _yw_to_w,
    batched_counterpart="etp_embedding_batched",
    **_RULES,
)
ETP_EMBEDDING_BATCHED = ETPPrimitiveSpec(
    "etp_embedding_batched", _take, _yw_to_w_batched, batched=True, **_RULES
)
