# SPDX-License-Identifier: Apache-2.0
"""What a specification refuses, and where it says that trainable operands are."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import braintrace as bt


def times(x: Any, w: Any) -> Any:
    return x * w


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"name": "not a name"}, ValueError, "name must be an identifier, got 'not a name'"),
        ({"name": ""}, ValueError, "name must be an identifier, got ''"),
        ({"name": 3}, (ValueError, TypeError), "name must be .*identifier, got 3"),
        ({"impl": None}, TypeError, "impl of 'unit_bad' must be callable"),
        ({"impl": "matmul"}, TypeError, "impl of 'unit_bad' must be callable"),
        ({"yw_to_w": 1}, TypeError, "yw_to_w of 'unit_bad' must be callable"),
        ({"xy_to_dw": {}}, TypeError, "xy_to_dw of 'unit_bad' must be callable"),
        ({"init_drtrl": "zeros"}, TypeError, "init_drtrl of 'unit_bad' must be callable"),
        ({"init_pp": 0}, TypeError, "init_pp of 'unit_bad' must be callable"),
        ({"instant_drtrl": 0}, TypeError, "instant_drtrl of 'unit_bad' must be callable"),
        ({"solve_drtrl": 0}, TypeError, "solve_drtrl of 'unit_bad' must be callable"),
        ({"trainable_invars_fn": {"w": 1}}, TypeError, "trainable_invars_fn .* must be callable"),
        ({"y_outvar_index": 1}, ValueError, "y_outvar_index of 'unit_bad' is 1; .*must be 0"),
        (
            {"batched": True, "x_invar_index": None},
            ValueError,
            "'unit_bad' is batched but has no x",
        ),
        ({"x_invar_index": -1}, (ValueError, TypeError), "x_invar_index"),
        ({"x_invar_index": "x"}, (ValueError, TypeError), "x_invar_index"),
        ({"batched_counterpart": 3}, (ValueError, TypeError), "batched_counterpart"),
        ({"batched": "no"}, (ValueError, TypeError), "batched"),
        ({"gradient_enabled": 1.5}, (ValueError, TypeError), "gradient_enabled"),
    ],
)
def test_bad_specifications(fields: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        bt.ETPPrimitiveSpec(**{"name": "unit_bad", "impl": times, **fields})


def test_a_specification_is_frozen() -> None:
    spec = bt.ETPPrimitiveSpec("unit_frozen", times)
    with pytest.raises(FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]


def test_trainable_operands() -> None:
    spec = bt.ETPPrimitiveSpec
    assert spec("unit_t", times).resolve_trainable_invars({}) == {"weight": 1}
    assert spec("unit_t", times, x_invar_index=2).resolve_trainable_invars({}) == {"weight": 3}
    assert spec("unit_t", times, x_invar_index=None).resolve_trainable_invars({}) == {"weight": 0}
    assert spec("unit_t", times).weight_invar_index == 1
    affine = spec("unit_t", times, trainable_invars_fn=lambda params: {"w": 1, "b": 2})
    assert affine.resolve_trainable_invars({"power": 1}) == {"w": 1, "b": 2}
    assert affine.weight_invar_index == 1
    for wrong in ({}, {"x": 0}, {"w": 1, "x": 0}):
        bad = spec("unit_t", times, trainable_invars_fn=lambda params, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="trainable_invars_fn of 'unit_t' returned"):
            bad.resolve_trainable_invars({})
    for wrong in ({"w": -1}, {"w": 1.5}, {"v": 1, "w": 1}):
        bad = spec("unit_t", times, trainable_invars_fn=lambda params, wrong=wrong: wrong)
        with pytest.raises((ValueError, TypeError), match="trainable_invars_fn of 'unit_t'"):
            bad.resolve_trainable_invars({})
