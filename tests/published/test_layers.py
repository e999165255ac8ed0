# SPDX-License-Identifier: Apache-2.0
"""Layers that carry a name of ``braintrace`` 0.2 compute and start as they did.

What differs is a row of ``docs/from-0.2.md``, and each row is true.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import nn
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


# --- the rows of the table ------------------------------------------------------------------------


def test_a_signed_weight_maps_the_last_axis() -> None:
    layer = nn.SignedWLinear((5, 3), (5, 4))
    assert layer.weight.value.shape == (3, 4)
    assert layer(jnp.ones((2, 5, 3))).shape == (2, 5, 4)


def test_a_standardised_weight_with_a_gain_maps_one_example_to_one() -> None:
    assert nn.ScaledWSLinear(3, 4, ws_gain=True)(jnp.ones(3)).shape == (4,)


def test_the_size_of_what_an_lru_returns() -> None:
    cell = nn.LRUCell(3, 4)
    cell.init_state()
    assert cell.out_size == cell(jnp.ones(3)).shape == (3,)


def test_operands_are_what_they_should_be() -> None:
    x, weight = jnp.ones((2, 3)), jnp.ones((3, 4))
    for integers in (x.astype(int), x > 0):
        with pytest.raises(TypeError, match=r"x has dtype .*astype\(jax.numpy.float32\)"):
            braintrace.matmul(integers, weight)
    for bias in (jnp.ones((1, 4)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
            braintrace.matmul(x, weight, bias)
    with pytest.raises(ValueError, match=r"weight must have shape \[in, out\]"):
        braintrace.matmul(x, weight[:, 0])


def test_names_of_arguments() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        braintrace.sparse_matmul(jnp.ones(3), weight=jnp.ones(3), sparse_mat=None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'impl_fn'"):
        braintrace.register_primitive("published_impl", impl_fn=jnp.add)
