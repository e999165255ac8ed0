# SPDX-License-Identifier: Apache-2.0
"""Read-only views on the registry of primitives."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import jax
import pytest

import braintrace as bt


def times(x: Any, w: Any) -> Any:
    return x * w


affine_p = bt.register_primitive("unit_seen", times)
batched_p = bt.register_primitive("unit_seen_many", times, batched=True)


def test_views_on_the_registry() -> None:
    assert isinstance(bt.ETP_PRIMITIVES, Set) and isinstance(bt.ETP_PRIMITIVE_SPECS, Mapping)
    assert affine_p in bt.ETP_PRIMITIVES and batched_p in bt.ETP_PRIMITIVES
    assert jax.lax.add_p not in bt.ETP_PRIMITIVES
    assert batched_p in bt.BATCHED_PRIMITIVES and affine_p not in bt.BATCHED_PRIMITIVES
    assert len(bt.ETP_PRIMITIVES) == len(list(bt.ETP_PRIMITIVES)) > len(bt.BATCHED_PRIMITIVES)
    assert bt.ETP_PRIMITIVE_SPECS[affine_p] is affine_p.spec
    assert set(bt.ETP_PRIMITIVE_SPECS) == set(bt.ETP_PRIMITIVES)
    with pytest.raises(KeyError):
        bt.ETP_PRIMITIVE_SPECS[jax.lax.add_p]


@pytest.mark.parametrize("rule", ["yw_to_w", "xy_to_dw", "init_drtrl", "init_pp"])
def test_views_on_the_rules(rule: str) -> None:
    view = getattr(bt, f"ETP_RULES_{rule.upper()}")
    primitive = bt.register_primitive(f"unit_view_{rule}", times)
    assert primitive not in view
    with pytest.raises(KeyError):
        view[primitive]
    primitive.register_etp_rules(**{rule: times})
    assert view[primitive] is times
    assert primitive in set(view)


@pytest.mark.parametrize(
    "view",
    ["ETP_PRIMITIVES", "BATCHED_PRIMITIVES", "ETP_PRIMITIVE_SPECS", "ETP_RULES_XY_TO_DW"],
)
def test_views_are_read_only(view: str) -> None:
    found = getattr(bt, view)
    for method in ("add", "discard", "clear", "pop", "update", "__setitem__", "__delitem__"):
        assert not hasattr(found, method)
    with pytest.raises(TypeError):
        found[affine_p] = None
