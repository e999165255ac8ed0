# SPDX-License-Identifier: Apache-2.0
"""The arrays of a learner, each under a name."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import optax
import pytest
import saiunit as u

import braintrace as bt
from braintrace.files.arrays import Leaf, is_opened, leaves_of, named, parts_of, unit_of
from tests import zoo

State = brainstate.ShortTermState


class Marked(zoo.Leaky):
    """Of every kind: a parameter, a hidden state, others with units and in a tree."""

    def __init__(self) -> None:
        super().__init__()
        self.speed = State({"v": jnp.ones(2) * u.mV, "n": 3})
        self.again = self.speed


def compiled(model: Any) -> Any:
    x = jnp.ones((2, zoo.IN))
    return bt.compile(model, "d_rtrl", x, batch_size=2, downstream="step")


def test_every_array_has_a_name_a_kind_and_a_unit() -> None:
    leaves = {leaf.name: leaf for leaf in leaves_of(compiled(Marked()), None)}
    assert {name: leaf.kind for name, leaf in leaves.items()} == {
        "random/default": "random",
        "model/h": "hidden",
        "model/again['n']": "other",  # met twice: under its first name
        "model/again['v']": "other",
        "model/w": "param",
        "trace/0['weight']": "trace",
        "learner/running_index": "learner",
    }
    assert leaves["model/again['v']"].unit == unit_of(u.mV)
    assert leaves["model/h"].unit == ""
    assert leaves["model/w"].type.shape == (zoo.IN, zoo.HIDDEN)


def test_the_states_of_an_optimizer_are_named_by_their_place() -> None:
    learner = compiled(zoo.Leaky())
    optimizer = {"rate": State(jnp.ones(())), "all": [State(jnp.zeros(2))]}
    found = [leaf.name for leaf in leaves_of(learner, optimizer) if leaf.kind == "optimizer"]
    assert found == ["optimizer/rate", "optimizer/all/0"]


def test_an_optimizer_without_states_is_refused() -> None:
    learner = compiled(zoo.Leaky())
    with pytest.raises(TypeError, match=r"optimizer\['a'\]\[1\] \(a float\) holds no brainstate"):
        leaves_of(learner, {"a": [State(jnp.ones(1)), 2.0]})


def test_a_learner_that_is_not_compiled_or_lost_a_state_is_refused() -> None:
    model = zoo.Leaky()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = bt.D_RTRL(model)
    with pytest.raises(bt.CompilationError, match="call compile_graph"):
        leaves_of(learner, None)
    learner.compile_graph(jnp.ones((2, zoo.IN)))
    model.w = zoo.weight(zoo.IN, zoo.HIDDEN)
    with pytest.raises(bt.CompilationError, match="the param state w was initialised again"):
        leaves_of(learner, None)


def test_names_that_are_no_identifiers_are_quoted() -> None:
    assert named("model", ("layers", 0, "w")) == "model/layers/0/w"
    assert named("model", ("a b", ("x", 1))) == "model/'a b'/('x', 1)"


def test_units_that_are_equal_have_one_text() -> None:
    text = "mV = 1.0 * 10.0^-3.0 m^2 kg s^-3 A^-1"
    assert unit_of(u.mV) == text
    assert unit_of(u.mA * u.ohm).partition(" = ")[2] == text.partition(" = ")[2]


def test_what_is_no_array_is_named() -> None:
    state = State("text")
    with pytest.raises(TypeError, match="model/a cannot be saved: a str is no array"):
        Leaf("model/a", "other", "", state, "text").type  # noqa: B018


class Plain:
    """An object of the user's with whatever attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def test_parts_of_objects_are_found_once_and_by_their_path() -> None:
    state = State(jnp.ones(1))
    inner = Plain(state=state)
    outer = Plain(b=[inner, 3], a=inner)
    inner.back = outer  # a circle
    found = {path: part for path, part in parts_of(outer) if isinstance(part, Plain | State)}
    assert found == {(): outer, ("a",): inner, ("a", "state"): state}


def test_libraries_without_states_are_not_looked_into() -> None:
    assert is_opened(Plain()) and is_opened(zoo.Leaky())
    for part in (optax.adam, State(1), Plain, 3, jnp.ones(1), optax.sgd(0.1)):
        assert not is_opened(part)
