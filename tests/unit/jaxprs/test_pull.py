# SPDX-License-Identifier: Apache-2.0
"""From cotangents of processed parameters to those of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base import versions
from braintrace.jaxprs.pull import converts, in_front_of_conversions, pulled_to

MASK = np.array([1.0, 0.0, 2.0])


def of_parameters(w: Any, n: Any) -> list[Any]:
    half = w.astype("float16")
    return [half.astype("float32"), half * MASK.astype("float16"), jnp.sin(w), w * n]


def pulled(bars: list[Any]) -> Any:
    w, n = jnp.array([0.1, 0.2, 0.3], "float32"), jnp.arange(3)
    program = versions.make_jaxpr(of_parameters, w, n)
    leaves = dict(zip(program.invars, (w, n), strict=True))
    targets = list(zip(program.outvars, bars, strict=True))
    return w, pulled_to(leaves, versions.constants(program), program.eqns, targets), program.invars


def test_conversions_leave_a_cotangent_as_it_is() -> None:
    """1e6 and 1e-9 are no numbers of float16, through which the parameter went."""
    large = jnp.array([1e6, 1e-9, 1.0], "float32")
    zeros = [jnp.zeros(3, "float32")] * 3
    _, found, (var, _) = pulled([large, *zeros])
    np.testing.assert_array_equal(found[var], large)


def test_what_is_computed_in_half_precision_passes_a_scaled_cotangent() -> None:
    bars = [jnp.array(v, "float32") for v in ([1, 1, 1], [1e6, 1e6, 2e6], [1, 2, 3], [0, 1, 0])]
    w, found, (var, integer) = pulled(bars)
    want = bars[0] + MASK * bars[1] + jnp.cos(w) * bars[2] + jnp.arange(3) * bars[3]
    np.testing.assert_allclose(found[var], want, rtol=1e-3)
    assert integer not in found


def test_a_conversion_is_one_between_real_numbers() -> None:
    def function(x: Any) -> Any:
        return x.astype("float16").astype("int32"), x.astype("complex64"), x.astype("bfloat16") + 1

    program = versions.make_jaxpr(function, jax.ShapeDtypeStruct((2,), "float32"))
    found = [converts(eqn) for eqn in program.eqns]
    assert found == [True, False, False, True, False]
    made = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    assert in_front_of_conversions(program.eqns[0].outvars[0], made) is program.invars[0]
    assert in_front_of_conversions(program.outvars[0], made) is program.outvars[0]
