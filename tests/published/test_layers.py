# SPDX-License-Identifier: Apache-2.0
"""Layers that carry a name of ``braintrace`` 0.2 compute and start as they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.published.layers import LAYERS, WIDE, result, spread

THEN: dict[str, Any] = json.loads((Path(__file__).parent / "layers.json").read_text())


def test_all_layers_are_compared() -> None:
    assert THEN["version"].startswith("0.2.")
    assert THEN["layers"].keys() == LAYERS.keys() and THEN["spread"].keys() == WIDE.keys()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_did(name: str) -> None:
    if name == "SparseLinear":
        pytest.importorskip("brainevent", reason="0.2 takes no other matrices")
    now, then = result(name), THEN["layers"][name]
    assert jax.tree.structure(now) == jax.tree.structure(then)
    for ours, theirs in zip(jax.tree.leaves(now), jax.tree.leaves(then), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-4, 2e-5)


@pytest.mark.parametrize("name", WIDE)
def test_a_layer_starts_as_widely_as_it_did(name: str) -> None:
    assert spread(name) == pytest.approx(THEN["spread"][name], rel=0.25)
