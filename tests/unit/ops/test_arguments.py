# SPDX-License-Identifier: Apache-2.0
"""Arguments of operations: real arrays, units, biases, leading axes as one batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace.ops.arguments import bias_in_unit, by_rows, processed, real_array, with_unit


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("text", "scale: x must be an array or a saiunit.Quantity, got str"),
        (np.ones(2) * 1j, "scale: x has the complex dtype complex"),
        (np.arange(2), "scale: x has dtype int.*expected a floating-point dtype"),
        (np.ones(2) > 0, "scale: x has dtype bool"),
    ],
)
def test_what_is_no_real_array(value: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        real_array("scale", "x", value)


def test_units_are_split_and_put_back() -> None:
    array, unit = real_array("scale", "x", jnp.ones(2) * saiunit.mV)
    assert unit == saiunit.mV and array.tolist() == [1.0, 1.0]
    assert saiunit.get_unit(with_unit(array, unit)) == saiunit.mV
    assert with_unit(array, saiunit.UNITLESS).tolist() == [1.0, 1.0]


def test_a_bias_has_the_shape_and_the_dimension_of_the_product() -> None:
    one = jnp.ones(1) * saiunit.volt
    assert bias_in_unit("scale", one, (1,), saiunit.mV, "x * w").tolist() == [1000.0]
    with pytest.raises(ValueError, match=r"scale: bias must have shape \(2,\), got shape \(1,\)"):
        bias_in_unit("scale", one, (2,), saiunit.mV, "x * w")
    with pytest.raises(TypeError, match=r"expected the unit of x \* w, mA"):
        bias_in_unit("scale", one, (1,), saiunit.mA, "x * w")


def test_functions_of_parameters() -> None:
    assert processed("scale", "weight_fn", None, -2.0) == -2.0
    assert processed("scale", "weight_fn", abs, -2.0) == 2.0
    volt = -2.0 * saiunit.volt
    assert processed("scale", "weight_fn", lambda w: w**2, volt) == 4.0 * saiunit.volt
    assert processed("scale", "bias_fn", lambda w: w + 1, volt, saiunit.mV) == -1.999 * saiunit.volt
    assert processed("scale", "bias_fn", lambda w: w + 1, volt, saiunit.mA) == -1.0 * saiunit.volt
    with pytest.raises(TypeError, match="scale: weight_fn must be a function, got int"):
        processed("scale", "weight_fn", 3, -2.0)  # type: ignore[arg-type]


def test_leading_axes_are_one_batch() -> None:
    seen = []

    def first(rows: Any) -> Any:
        seen.append(rows.shape)
        return rows[..., :2]

    for shape in ((4,), (3, 4), (5, 3, 4), (0, 3, 4)):
        assert by_rows(first, jnp.ones(shape)).shape == (*shape[:-1], 2)
    assert seen == [(4,), (3, 4), (15, 4), (0, 4)]
