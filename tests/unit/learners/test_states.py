# SPDX-License-Identifier: Apache-2.0
"""The states of a learner by path, and the traces of a parameter."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.learners.bench import Bench, refused


def test_states_are_those_of_the_model(bench: Bench) -> None:
    learner, model = bench.learner, bench.model
    params = {("out",): model.out, ("w",): model.w}
    assert learner.param_states == learner.trained_states == params
    assert learner.hidden_states[("h",)] is model.h
    assert learner.path_to_states.items() >= {**params, **learner.hidden_states}.items()
    assert learner.state_id_to_path[model.h] == ("h",)
    assert learner.other_states.keys() == {("count",), ("noise",)}
    assert learner.own_options["vjp_method"] == "single-step"


@pytest.mark.parametrize("weight", [("nothing",), ("out",), "w", 3, ("h",)])
def test_get_etrace_of_something_without_a_trace(bench: Bench, weight: Any) -> None:
    with refused(bench, KeyError, r"has no trace; parameters with one are \['w'\]"):
        bench.learner.get_etrace_of(weight)


def test_get_etrace_of_a_state_without_a_trace(bench: Bench) -> None:
    with refused(bench, KeyError, r"out.* has no trace; parameters with one are \['w'\]"):
        bench.learner.get_etrace_of(bench.model.out)
