# SPDX-License-Identifier: Apache-2.0
"""Arguments of operations, and sizes, initial values and keys of layers."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace.ops.arguments import (
    as_count,
    as_size,
    bias_in_unit,
    by_rows,
    initial_value,
    keyword_key,
    processed,
    real_array,
    seeded,
    with_unit,
)


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


@pytest.mark.parametrize("size", [0, -1, (), (2, 0), 1.5, "3", None, [[1]]])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match="in_size must be a positive integer or a tuple of them"):
        as_size("in_size", size)


def test_sizes() -> None:
    assert as_size("in_size", 3) == (3,) == as_size("in_size", [np.int32(3)])
    assert as_count("groups", (2,)) == 2
    with pytest.raises(ValueError, match="groups must be one positive integer"):
        as_count("groups", (2, 3))


@pytest.mark.parametrize("value", [0.5, np.full(2, 0.5), np.full((1, 1), 0.5), lambda s: 0.5])
def test_initial_values_are_broadcast(value: Any) -> None:
    assert initial_value("b_init", value, (3, 2)).tolist() == [[0.5, 0.5]] * 3


def test_an_initial_value_keeps_its_unit() -> None:
    found = initial_value("b_init", 0.5 * saiunit.mV, (2,))
    assert saiunit.get_unit(found) == saiunit.mV and found.shape == (2,)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 1, 2)])
def test_an_initial_value_of_another_shape(shape: tuple[int, ...]) -> None:
    for value in (np.ones(shape), jnp.ones(shape), jnp.ones(shape) * saiunit.mV):
        with pytest.raises(ValueError, match="b_init gives the shape .*, expected"):
            initial_value("b_init", value, (1, 2))
    with pytest.raises(ValueError, match="b_init gives None"):
        initial_value("b_init", lambda s: None, (2,))


def test_a_positional_key_is_accepted_with_a_warning() -> None:
    class Layer:
        @keyword_key
        def __init__(self, size: int, *, key: Any = None) -> None:
            self.key = key

    assert Layer(3, key=1).key == 1
    with pytest.warns(DeprecationWarning, match="key is given by position"):
        assert Layer(3, 1).key == 1  # type: ignore[call-arg, misc]
    with pytest.raises(TypeError):
        Layer(3, 1, key=2)  # type: ignore[call-arg, misc]


def test_a_seed_of_ones_own() -> None:
    def draw(seed: Any) -> float:
        with seeded(seed):
            return float(brainstate.random.rand())

    assert draw(7) == draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_an_initializer_that_decomposes_a_matrix_works_in_half_precision() -> None:
    """Orthogonal weights are those of GRU and MGU cells; LAPACK has no half precision."""
    for precision, dtype in (("bf16", "bfloat16"), (16, "float16")):
        with brainstate.environ.context(precision=precision):
            value = initial_value("w_init", brainstate.nn.init.Orthogonal(), (4, 3))
        assert value.dtype == dtype
        wide = value.astype("float32")
        assert jnp.allclose(wide.T @ wide, jnp.eye(3), atol=0.05)

    def refuses(shape: tuple[int, ...]) -> None:
        raise NotImplementedError("no such shape")

    for precision in (16, 32):
        with (
            brainstate.environ.context(precision=precision),
            pytest.raises(NotImplementedError, match="no such shape"),
        ):
            initial_value("w_init", refuses, (4, 3))
