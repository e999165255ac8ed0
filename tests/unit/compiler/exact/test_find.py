# SPDX-License-Identifier: Apache-2.0
"""Which groups of few values are above which groups and operations."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from tests.unit.compiler.exact.layers import Gated, graph_of


def test_groups_above_groups() -> None:
    exact = graph_of(Gated(3, 4), Gated(4, 5), Gated(5, 2)).exact
    assert exact.above == {0: (1, 2), 1: (2,)} and exact.by_example


def test_groups_above_operations() -> None:
    """Of another layer; those that read a group, or are near it, are its own."""
    graph = graph_of(bt.nn.Linear(3, 4), jnp.tanh, Gated(4, 2))
    ((y, above),) = graph.exact.above.items()
    assert y.aval.shape == (2, 4) and above == (0,)
    assert graph.exact.operations[y].paths == (("layers", 0, "weight"),)
    cell = brainstate.nn.init_all_states(bt.nn.GRUCell(3, 2), batch_size=2)
    assert not graph_of(cell).exact.above


def test_layers_of_many_values() -> None:
    exact = graph_of(Gated(3, 4), Gated(4, 65), Gated(65, 2)).exact
    assert exact.above == {1: (2,)} and exact.too_large == {("layers", 1, "v"): 65}
    with pytest.raises(bt.NotSupportedError, match=r"layers\[1\].v \(65 values\)"):
        graph_of(Gated(3, 4), Gated(4, 65))


def test_values_of_examples_that_are_mixed_count_together() -> None:
    exact = graph_of(Gated(3, 4), Gated(4, 20, mixes=True)).exact
    assert not exact.by_example and next(exact.costs())[2] == 40
    with pytest.raises(bt.NotSupportedError, match=r"\(80 values\)"):
        graph_of(Gated(3, 4), Gated(4, 40, mixes=True))
