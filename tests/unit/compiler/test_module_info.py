# SPDX-License-Identifier: Apache-2.0
"""The record of a step."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.module_info import DYNAMIC, StateKind, is_barrier
from tests import zoo
from tests.unit.compiler.reference import RNN1, RNN2, X


def test_module_info(model: Any) -> None:
    info = bt.extract_module_info(model, X)
    assert len(info.compiled_model_states) == 5
    assert info.compiled_model_states == info.retrieved_model_states
    assert {p: len(v) for p, v in info.weight_path_to_invars.items()} == {
        RNN1: 2,
        RNN2: 2,
        ("out", "weight"): 2,
    }
    assert info.state_id_to_path[model.rnn1.h] == ("rnn1", "h")
    assert set(info.state_id_to_path.values()) == set(info.compiled_model_states)
    assert info.outvar_to_hidden_path == {v: p for p, v in info.hidden_path_to_outvar.items()}
    assert {info.invar_to_weight_path[v] for v in info.weight_path_to_invars[RNN1]} == {RNN1}


def test_from_a_variable_to_its_parameter() -> None:
    case = zoo.case("processed", 2, steps=1)
    info = bt.extract_module_info(case.model, case.xs[0])
    _, drive = bt.find_hidden_param_op_relations_from_minfo(
        info, bt.find_hidden_groups_from_minfo(info)[0]
    )
    path, crossed = info.trace_to_param(drive.trainable_vars["weight"])
    assert path == ("p",)
    assert [primitive.name for primitive in crossed] == ["abs", "mul", "add"]
    chain = drive.trainable_processing_chains["weight"]
    assert [primitive.name for primitive in chain] == ["abs", "mul", "tanh", "add"]
    leaf = info.weight_path_to_invars["p",][0]
    assert info.trace_to_param(leaf) == (("p",), ())
    assert info.trace_to_param(info.jaxpr.invars[0]) == (None, ())


def test_what_is_behind_a_variable(model: Any) -> None:
    info = bt.extract_module_info(model, X)
    out = info.jaxpr.outvars[0]
    leaves = {path for path, _ in info.behind(out) - {DYNAMIC}}
    assert leaves == {RNN1, RNN2, ("out", "weight")} and DYNAMIC in info.behind(out)
    assert {path for path, _ in info.trained_by(out)} == leaves
    assert info.behind(info.jaxpr.invars[0]) == {DYNAMIC}
    eqn = info.producer(out)
    assert eqn is not None and out in eqn.outvars
    assert info.producer(info.jaxpr.invars[0]) is None
    (first, *_) = (eqn for eqn in info.eqns if is_barrier(eqn))
    assert not any(info.near(0, first, k) for k in range(len(first.invars)))


def test_slots_and_their_variables(model: Any) -> None:
    info = bt.extract_module_info(model, X)
    hidden = info.slots_of(StateKind.HIDDEN)
    assert {slot.path for slot in hidden} == {("rnn1", "h"), ("rnn2", "h")}
    for slot in info.slots:
        assert len(info.invars_of(slot)) == len(info.outvars_of(slot)) == len(slot.leaves)
    assert [s.path for s in info.as_read(StateKind.HIDDEN)] == [("rnn1", "h"), ("rnn2", "h")]
    assert not any(slot.is_filter for slot in info.slots)


def test_the_environment_is_as_when_it_was_traced() -> None:
    class Timed(zoo.Leaky):
        def update(self, x: Any) -> Any:
            return (
                super().update(x)
                * brainstate.environ.get("gain", 1.0)
                * brainstate.environ.get("t")
            )

    model = Timed()
    brainstate.nn.init_all_states(model, batch_size=2)
    x = jnp.ones((2, zoo.IN))
    with brainstate.environ.context(t=1.0, gain=2.0):
        info = bt.extract_module_info(model, x)
    assert info.environment == ("t",) and info.settings["gain"] == 2.0
    with info.as_when_traced() as args:
        assert [a.shape for a in args] == [(2, zoo.IN)]
        assert brainstate.environ.get("gain") == 2.0
    with pytest.raises(bt.CompilationError, match="compiled with 't' in brainstate.environ, which"):
        info.with_environment((x,))
    with brainstate.environ.context(t=5.0):
        assert float(info.with_environment((x,))[1]["t"]) == 5.0
