# SPDX-License-Identifier: Apache-2.0
"""How the gradient of each parameter arises, and why some have none."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.coverage import by_path, require_coverage, resolve_frozen, why_uncovered
from tests import zoo
from tests.zoo import HIDDEN, IN, weight


class Some(zoo.Leaky):
    """Parameters whose gradient arises in each way, or in none."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.plain = weight(HIDDEN), weight(HIDDEN)
        self.aside = [weight(2), weight(3)]
        self.held, self.sign = weight(HIDDEN), weight(HIDDEN)
        self.count = brainstate.ParamState(jnp.arange(HIDDEN))

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value, self.both.value)
        self.h.value = 0.8 * self.h.value + y
        jnp.sin(self.aside[0].value)
        held = jax.lax.stop_gradient(self.held.value)
        sign = (self.sign.value > 0).astype(x.dtype)
        return self.h.value * self.both.value + self.plain.value * held * sign * self.count.value


@pytest.fixture
def info() -> Any:
    model = Some()
    brainstate.nn.init_all_states(model, batch_size=2)
    return bt.extract_module_info(model, jnp.ones((2, IN)))


LOST = {
    ("aside", 0): "its value reaches neither the result nor a state",
    ("aside", 1): "the step does not read it",
    ("count",): "it is of dtype int",
    ("held",): "it is used only behind stop_gradient or in integers and booleans, at ",
    ("sign",): "it is used only behind stop_gradient or in integers and booleans, at ",
}


@pytest.mark.parametrize("path", LOST, ids=str)
def test_why_a_parameter_has_no_gradient(path: Any, info: Any) -> None:
    said = why_uncovered(info, path)
    assert said.startswith(LOST[path])
    assert ("test_coverage.py:" in said) == said.startswith("it is used only")


def test_ways_of_gradients() -> None:
    model = Some()
    brainstate.nn.init_all_states(model, batch_size=2)
    frozen = [".".join(map(str, p)) if p[0] != "aside" else p for p in LOST]
    graph = bt.compile_etrace_graph(model, jnp.ones((2, IN)), frozen=frozen)
    assert graph.coverage() == {
        ("w",): "trace",
        ("both",): "trace+direct",
        ("plain",): "direct",
        **dict.fromkeys(LOST, "none"),
    }


def test_lost_parameters_are_one_error(info: Any) -> None:
    coverage = {("w",): "trace", **dict.fromkeys(LOST, "none")}
    require_coverage(info, coverage, frozenset(LOST))
    with pytest.raises(bt.CompilationError) as refusal:
        require_coverage(info, coverage, frozenset([*LOST][1:]))
    assert str(refusal.value) == (
        "no gradient can reach 1 of the model's 6 parameters:\n"
        "  aside[0]: its value reaches neither the result nor a state\n"
        "Let the step use them, take them out of the model, or say that they are meant to stay as "
        "they are: frozen=['aside[0]']"
    )


def test_names_of_frozen_parameters(info: Any) -> None:
    aside = {("aside", 0), ("aside", 1)}
    for frozen in ("aside", ["aside"], [("aside",)], ["aside[0]", ("aside", 1)]):
        assert resolve_frozen(info.model_parameters, frozen) == aside
    assert resolve_frozen(info.model_parameters, lambda path: path[-1] == 1) == {("aside", 1)}
    state = info.model_parameters["w",]
    assert (
        resolve_frozen(info.model_parameters, state) == {("w",)}
        and resolve_frozen(info, ()) == frozenset()
    )
    for wrong, error, text in (
        ("asid", ValueError, r"frozen names no parameter: 'asid'; similar names are \['aside'"),
        ([weight(2)], ValueError, "holds a ParamState that is not a parameter of the model"),
        ([3], TypeError, "must be a path, .*got int"),
    ):
        with pytest.raises(error, match=text):
            resolve_frozen(info.model_parameters, wrong)


def test_frozen_states_are_named_by_their_paths(info: Any) -> None:
    states = info.model_parameters
    assert by_path(states, states["w",]) == by_path(states, [states["w",]]) == (("w",),)
    assert by_path(states, ["aside", states["w",]]) == (("aside", 0), ("aside", 1), ("w",))
    for frozen in ("aside", ("w", "aside"), callable):
        assert by_path(states, frozen) is frozen  # holds for copies of the model as it is
