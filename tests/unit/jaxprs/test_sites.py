# SPDX-License-Identifier: Apache-2.0
"""Finding operations in a jaxpr, nested ones included."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import braintrace as bt
from braintrace.base.versions import jaxp
from braintrace.jaxprs.sites import etp_equations, first_nested_operation, holds, nested

scale_p = bt.register_primitive("unit_sites_scale", lambda x, w: x * w)


def looped(x: Any, w: Any) -> Any:
    def body(carry: Any, _: Any) -> Any:
        return jax.lax.cond(carry > 0, lambda c: scale_p.bind(c, w), jnp.sin, carry), None

    return scale_p.bind(jax.lax.scan(body, x, None, length=3)[0], w)


def test_operations_are_found_at_any_depth() -> None:
    scan, last = jax.make_jaxpr(looped)(1.0, 2.0).eqns
    assert etp_equations([scan, last]) == [1]
    assert first_nested_operation(last) is None
    found = first_nested_operation(scan)
    assert found is not None and found.primitive is scale_p
    assert holds(scan, scale_p) and holds(scan, jaxp.sin_p) and holds(last, scale_p)
    assert not holds(scan, jaxp.cos_p) and not holds(last, jaxp.sin_p)
    assert {"gt", "cond", "sin", "unit_sites_scale"} <= {e.primitive.name for e in nested(scan)}
