# SPDX-License-Identifier: Apache-2.0
"""What is said of credit in the layers above."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.findings.downstream import as_written

Kind = bt.DiagnosticKind


class Leaky(brainstate.nn.Module):
    def __init__(self, inputs: int, outputs: int, gated: bool) -> None:
        super().__init__()
        self.w, self.gated = bt.nn.Linear(inputs, outputs), gated
        self.v = brainstate.HiddenState(jnp.zeros((2, outputs)))

    def update(self, x: Any) -> Any:
        v = self.v.value
        self.v.value = (jnp.tanh(v) if self.gated else 0.9 * v) + self.w(x)
        return jnp.tanh(self.v.value)


def graph_of(*gated: bool, **options: Any) -> Any:
    layers = (Leaky(3, 3, one) for one in gated)
    model = brainstate.nn.Sequential(*layers)
    return bt.compile_etrace_graph(model, jnp.ones((2, 3)), **options)


def of_credit(graph: Any) -> Any:
    return [r for r in graph.diagnostics if r.kind in (Kind.UNIFORM_DYNAMICS, Kind.CREDIT_STOPS)]


def records(*gated: bool, **options: Any) -> Any:
    return of_credit(graph_of(*gated, **options))


def test_a_uniform_state_is_named() -> None:
    (record,) = records(True, False, downstream="linear")
    assert record.kind is Kind.UNIFORM_DYNAMICS
    assert record.hidden_paths == (("layers", 1, "v"),)
    assert "a filter [2, 3]" in record.message


class Episodes(brainstate.nn.Module):
    """Neurons below a leaky readout, which starts anew where an input says so."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.low, self.w, self.ends = Leaky(3, 3, True), bt.nn.Linear(3, 3), ends
        self.r = brainstate.HiddenState(jnp.zeros((2, 3)))

    def update(self, x: Any) -> Any:
        leak = 0.8 * (1 - x[:, :1]) if self.ends else 0.8
        self.r.value = leak * self.r.value + self.w(self.low(x))
        return self.r.value


@pytest.mark.parametrize(("ends", "kappa"), [(True, 0.5), (True, None), (False, 0.5)])
def test_kappa_in_place_of_a_leak_that_ends_with_an_episode(ends: bool, kappa: Any) -> None:
    x, options = jnp.ones((2, 3)), {"downstream": "linear", "kappa": kappa}
    graph = bt.compile_etrace_graph(Episodes(ends), x, **options)
    (record,) = graph.explain(kind=Kind.UNIFORM_DYNAMICS)
    said = "credit passes also where that leak is zero, as at the end of an episode"
    assert (said in record.message) == (ends and kappa is not None)


def test_where_credit_stops_is_said_with_the_reason() -> None:
    (record,) = records(True, True, downstream="linear")
    assert record.kind is Kind.CREDIT_STOPS
    assert record.hidden_paths == (("layers", 1, "v"),)
    assert "what layers[0].v does" in record.message and "passes tanh at" in record.message
    assert "test_downstream.py" in record.message


def test_every_view_says_where_credit_flows_and_where_it_stops() -> None:
    """Of three layers: a record and a line for each pair, with what to do; so in a picture."""
    layers = (Leaky(3, 3, gated) for gated in (True, True, False))
    learner = bt.compile(brainstate.nn.Sequential(*layers), "d_rtrl", jnp.ones((2, 3)))
    passes, stops = of_credit(learner.graph)
    assert (passes.hidden_paths, stops.hidden_paths) == (
        (("layers", 2, "v"),),
        (("layers", 1, "v"),),
    )
    assert {one.level.value for one in (passes, stops)} == {"info"}
    for remedy in ("the same everywhere", "detach its reset", "downstream='exact'", "in windows"):
        assert remedy in stops.remedy
    for text in (learner.graph.report(width=200), learner.report):
        table = text.split("Credit over time")[1].split("\n\n")[0]
        rows = [line.split() for line in table.strip().splitlines()[2:4]]
        assert rows[0][:3] == ["layers[1].v", "layers[2].v", "passes:"]
        assert rows[1][:3] == ["layers[0].v", "layers[1].v", "stops:"]
        assert "Make the leak above the same everywhere" in table
    picture = str(learner.graph.draw())
    assert "credit of layers[0].v stops" in picture and "credit of layers[1].v passes" in picture


class Late(Leaky):
    """Its output is what it held a step before."""

    def update(self, x: Any) -> Any:
        old = self.v.value
        super().update(x)
        return old


@pytest.mark.parametrize("frozen", [(), [("layers", 0, "w", "weight")]])
def test_a_layer_of_which_the_result_hears_by_a_cut_path_alone_is_a_warning(frozen: Any) -> None:
    model = brainstate.nn.Sequential(Leaky(3, 3, True), Late(3, 3, True))
    told = nullcontext() if frozen else pytest.warns(bt.CompilationWarning, match="credit_stops")
    with told:
        graph = bt.compile_etrace_graph(model, jnp.ones((2, 3)), downstream="linear", frozen=frozen)
    (record,) = of_credit(graph)
    assert record.level.value == ("info" if frozen else "warning")
    assert "vjp_method='multi-step'" in record.remedy
    if not frozen:
        assert "the gradient of layers[0].w.weight is zero" in record.message
        learner = bt.compile(model, "d_rtrl", jnp.ones((2, 3)))
        grads = learner.etrace_grad(jnp.ones((4, 2, 3)), step_fn=lambda x: learner(x).sum())
        zero = {path[1]: not any(map(jnp.any, jax.tree.leaves(g))) for path, g in grads.items()}
        assert zero == {0: True, 1: False}


class Followed(brainstate.nn.Module):
    """Two layers in a list, of which the second follows the first and hears a product of it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.up = bt.nn.Linear(3, 3), bt.nn.Linear(3, 3)
        self.h = [brainstate.HiddenState(jnp.zeros((2, 3))) for _ in range(2)]

    def update(self, x: Any) -> Any:
        a, b = self.h
        a.value = jnp.tanh(a.value) + self.w(x)
        b.value = jax.nn.sigmoid(a.value) * b.value + self.up(a.value)
        return b.value


def test_states_that_are_one_group_of_the_rule_are_named() -> None:
    graph = bt.compile_etrace_graph(Followed(), jnp.ones((2, 3)), downstream="linear")
    assert len(graph.hidden_groups) == 2
    (record,) = graph.explain(kind=Kind.HIDDEN_GROUP_MERGED)
    assert "they are one group of the rule" in record.message
    assert "passes: one group" in graph.report()


def test_a_place_that_is_not_known_is_left_out() -> None:
    layers = bt.nn.GRUCell(3, 3), bt.nn.GRUCell(3, 2)
    model = brainstate.nn.Sequential(*layers)
    brainstate.nn.init_all_states(model, batch_size=2)
    graph = bt.compile_etrace_graph(model, jnp.ones((2, 3)), downstream="linear")
    (record,) = of_credit(graph)
    assert "its old value passes mul, which is no leak that is the same" in record.message


def test_where_credit_stops_between_states_that_are_all_uniform() -> None:
    """A nonlinearity between two leaks ends the credit of what is below the lower one."""
    found = records(True, False, False, downstream="linear")
    (record,) = (r for r in found if r.kind is Kind.CREDIT_STOPS)
    assert record.hidden_paths == (("layers", 2, "v"),)
    assert "what layers[0].v does" in record.message and "no linear map" in record.message


class Rolled(Leaky):
    """A leaky readout of the neurons next to each."""

    def __init__(self, between: Any) -> None:
        super().__init__(3, 3, gated=True)
        self.between, self.product = between, bt.nn.Linear(3, 3)
        self.r = brainstate.HiddenState(jnp.zeros((2, 3)))

    def update(self, x: Any) -> Any:
        self.r.value = 0.8 * self.r.value + self.product(self.between(super().update(x)))
        return self.r.value


def test_credit_between_positions_of_one_group_stops_and_is_said() -> None:
    def of(between: Any) -> Any:
        graph = bt.compile_etrace_graph(Rolled(between), jnp.ones((2, 3)), downstream="linear")
        return [r for r in of_credit(graph) if r.kind is Kind.CREDIT_STOPS]

    (record,) = of(lambda z: jnp.tanh(jnp.roll(z, 1, axis=1)))
    assert record.hidden_paths == (("r",),)
    assert "what v does" in record.message and "positions are mixed by" in record.message
    assert not of(lambda z: jnp.tanh(2.0 * z))


def test_leaks_that_stay_where_they_are_are_said_with_the_reason() -> None:
    found = graph_of(True, False, downstream="linear")
    stays = as_written(found, "no room")
    assert stays.executed is stays and not stays.uniform
    assert stays.not_uniform["layers", 1, "v"] == "no room"
    (record,) = of_credit(stays)
    assert record.kind is Kind.CREDIT_STOPS and record.message.endswith("no credit: no room")


def test_the_published_rule_says_where_credit_ends_without_a_warning() -> None:
    """Where it was asked for; rules that keep the whole influence ask for nothing."""
    assert records(True, True) == []
    (record,) = records(True, True, downstream="step")
    assert record.level.value == "info" and record.hidden_paths == (("layers", 1, "v"),)
    assert record.message.endswith("no credit: downstream='step' is the rule as it is published")
    assert "downstream='linear'" in record.remedy
    late = brainstate.nn.Sequential(Leaky(3, 3, True), Late(3, 3, True))
    with warnings.catch_warnings(action="error"):
        learner = bt.compile(late, "d_rtrl", jnp.ones((2, 3)), downstream="step")
        whole = bt.compile(late, "rtrl", jnp.ones((2, 3)))
    (record,) = of_credit(learner.graph)
    assert "the gradient of layers[0].w.weight is zero" in record.message
    table = str(learner.report).split("Credit over time")[1].split("\n\n")[0]
    assert "stops: downstream='step'" in table
    assert "within each hidden group alone" in str(learner.report)
    assert not of_credit(whole.graph)
