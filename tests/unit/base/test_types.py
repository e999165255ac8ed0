# SPDX-License-Identifier: Apache-2.0
"""Paths as text, bytes, and units as part of a structure."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

from braintrace.base.types import (
    bytes_of,
    check_module,
    how_many,
    in_units_of,
    named_leaves,
    restore_values,
    show_path,
    unit_change,
    units_of,
)

structure = jax.tree.structure


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("rnn", "layers", 0, "weight"), "rnn.layers[0].weight"),
        ((0, "w"), "[0].w"),
        (("w",), "w"),
        ((), ""),
    ],
)
def test_paths_are_written_one_way(path: Any, text: str) -> None:
    assert show_path(path) == text


def test_states_take_earlier_values_of_another_structure() -> None:
    state = brainstate.ShortTermState({"a": jnp.ones(1)})
    before = {state: state.value}
    state.value = [jnp.zeros(2)]
    restore_values(before)
    assert state.value["a"].tolist() == [1.0]


def test_bytes_of_arrays_and_of_their_types() -> None:
    tree = [jnp.ones((2, 3), "float32"), jax.ShapeDtypeStruct((4,), "int8"), None]
    assert bytes_of(tree) == 2 * 3 * 4 + 4
    assert bytes_of(()) == 0


def test_a_change_of_units_alone_is_named() -> None:
    def tree(*units: Any) -> Any:
        return structure([unit if unit is None else jnp.ones(2) * unit for unit in units])

    assert (
        unit_change(tree(u.mV, u.ms), tree(u.mV, u.second)) == "the unit s instead of the unit ms"
    )
    assert unit_change(structure([1.0]), tree(u.mV)) == "the unit mV instead of no unit"
    assert unit_change(tree(u.mV), structure([1.0])) == "no unit instead of the unit mV"
    assert unit_change(tree(u.mV), tree(u.mV)) is None
    assert unit_change(tree(u.mV), tree(u.volt, u.mV)) is None  # another structure


def test_quantities_come_in_the_units_of_a_structure() -> None:
    wanted = structure({"v": 1.0 * u.mV, "x": 1.0})
    found = in_units_of(wanted, {"v": jnp.array(2.0) * u.volt, "x": 3.0})
    assert structure(found) == wanted
    assert float(found["v"].mantissa) == pytest.approx(2000.0) and found["x"] == 3.0


def test_other_dimensions_and_structures_stay_as_they_are() -> None:
    second = {"v": 1.0 * u.second}
    assert structure(in_units_of(structure({"v": 1.0 * u.mV}), second)) == structure(second)
    other = [1.0 * u.volt]
    assert in_units_of(structure({"v": 1.0 * u.mV}), other) is other


def test_units_of_every_leaf_and_the_structure_without_them() -> None:
    units, bare = units_of(structure({"v": 1.0 * u.mV, "x": 1.0}))
    assert units == [u.mV, u.UNITLESS]
    assert bare.num_leaves == 2 and bare == units_of(structure({"v": 1.0 * u.volt, "x": 1.0}))[1]


def test_one_is_no_plural() -> None:
    assert [how_many(n, "reverse sweep") for n in (0, 1, 2)] == [
        "0 reverse sweeps",
        "1 reverse sweep",
        "2 reverse sweeps",
    ]


def test_a_quantity_is_one_leaf_of_a_name() -> None:
    found = named_leaves({"v": jnp.ones(2) * u.mV, "w": (1.0, 2.0 * u.ms)})
    assert [name for name, _ in found] == ["['v']", "['w'][0]", "['w'][1]"]
    assert len(jax.tree.leaves([leaf for _, leaf in found])) == 3


def test_a_class_is_no_model() -> None:
    check_module(brainstate.nn.Module())
    with pytest.raises(TypeError, match=r"got the class GRU: make one, GRU\(\.\.\.\)"):
        check_module(type("GRU", (brainstate.nn.Module,), {}))
    with pytest.raises(TypeError, match=r"brainstate\.nn\.Module, got int$"):
        check_module(1)
