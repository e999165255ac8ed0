# SPDX-License-Identifier: Apache-2.0
"""The primitive ``etp_elemwise``: marks a parameter that acts position by position.

One operand, ``weight`` [*W], and no input: ``y = weight``. It is the one built-in primitive
through which hidden-to-hidden gradients pass (``gradient_enabled``). Along the axes of a hidden
group that the weight lacks, the batch above all, ``y`` is broadcast: the core keeps one trace for
each position there and sums over them when solving, so these rules see the weight's own shape.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec

Arrays = dict[str, jax.Array]


def _identity(weight: jax.Array) -> jax.Array:
    return weight


def _yw_to_w(dy: jax.Array, trace: Arrays, **params: Any) -> Arrays:
    """Entry ``p`` of the weight feeds position ``p``; ``dy`` and the trace have one shape."""
    return {"weight": trace["weight"] * dy}


def _xy_to_dw(x: None, dy: jax.Array, weights: Arrays, **params: Any) -> Arrays:
    return {"weight": dy}


def _init_drtrl(x_var: None, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> Arrays:
    """Zeros [*W, S]."""
    return {"weight": _init_pp(x_var, y_var, weight_vars, num_state)}


def _init_pp(x_var: None, y_var: Any, weight_vars: dict[str, Any], num_state: int) -> jax.Array:
    """Zeros [*W, S]."""
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


ETP_ELEMWISE = ETPPrimitiveSpec(
    name="etp_elemwise",
    impl=_identity,
    yw_to_w=_yw_to_w,
    xy_to_dw=_xy_to_dw,
    init_drtrl=_init_drtrl,
    init_pp=_init_pp,
    x_invar_index=None,
    gradient_enabled=True,
)
