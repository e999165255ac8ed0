# SPDX-License-Identifier: Apache-2.0
"""The trace of an operation without rules is the derivative itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from braintrace.ops.operation import Operation
from braintrace.ops.traces import trace_rules
from braintrace.testing import assert_tree_close

RNG = np.random.default_rng(0)


def curved(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w) * w.sum()


def test_increments_are_factors_times_the_jacobian() -> None:
    x, f, w = (jnp.asarray(RNG.normal(size=s)) for s in ((4, 3), (4, 2, 2), (3, 2)))
    operation = Operation(
        bt.ETPPrimitiveSpec("unit_dense_trace", curved),
        {},
        (jax.typeof(x[0]), jax.typeof(w)),
        jax.typeof(curved(x[0], w)),
        ("weight",),
    )
    rules = trace_rules(operation, (), 2)
    found = rules.increments(x, f, (None, w))
    jacobian = jax.vmap(lambda one: jax.jacobian(lambda w: curved(one, w))(w))(x)
    assert_tree_close(found, {"weight": jnp.einsum("ksp,kpio->spio", f, jacobian)}, 1e-12)
