# SPDX-License-Identifier: Apache-2.0
"""Learning rules by their coordinates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.algorithms.config import decays_of
from tests import zoo

CONFIGS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "vocabulary": ({"recurrence_scope": "x"}, ValueError, "one of .*'diagonal'.*got 'x'"),
    "missing": ({"trace_factorization": "io_factorized"}, ValueError, "needs decay"),
    "alone": ({"kappa": 0.5}, ValueError, "kappa=0.5 needs trace_filter='kappa'"),
    "range": ({"trace_filter": "kappa", "kappa": 1.0}, ValueError, r"number in \[0, 1\)"),
    "order": ({"recurrence_scope": "sparse_n", "sparse_n": 0}, ValueError, "integer from 1"),
    "pair": (
        {"trace_factorization": "random_projection"},
        ValueError,
        r"goes with recurrence_scope in \('full',\), not with 'diagonal'",
    ),
    "filter": (
        {"recurrence_scope": "sparse_n", "sparse_n": 2, "trace_filter": "kappa", "kappa": 0.5},
        ValueError,
        "goes with recurrence_scope in",
    ),
    "dni": ({"learning_signal": "bootstrapped"}, ValueError, "goes with learning_signal in"),
    "seed": ({"seed": 0.5}, TypeError, "must be an integer or a JAX key, got 0.5"),
    "keys": ({"seed": jax.random.split(jax.random.key(0))}, TypeError, "integer or a JAX key"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(case: str) -> None:
    options, error, says = CONFIGS[case]
    with pytest.raises(error, match=says):
        bt.ETraceConfig(**options)


def test_spellings_of_one_rule_are_equal() -> None:
    assert bt.ETraceConfig(trace_filter="kappa", kappa=0.0) == bt.ETraceConfig()
    first = {"recurrence_scope": "sparse_n", "sparse_n": 1}
    coupled = bt.ETraceConfig(recurrence_scope="coupled", downstream="step")
    assert bt.ETraceConfig(**first, downstream="step") == coupled
    assert bt.ETraceConfig(**first, downstream="linear").sparse_n == 1


@pytest.mark.parametrize(
    ("given", "decays"),
    [(0.9, (0.9, 0.9)), (3, (0.5, 0.5)), (1, (0.0, 0.0)), ((0.0, 0.9), (0.0, 0.9)), ([3, 0], None)],
)
def test_decays_and_ranks(given: Any, decays: Any) -> None:
    if decays is None:
        with pytest.raises(ValueError, match="got the integer 0; no memory at all is 0.0"):
            decays_of(given)
    else:
        assert decays_of(given) == decays


@pytest.mark.parametrize(
    ("given", "error"),
    [(True, TypeError), ("a", TypeError), (1.0, ValueError), ((1, 2, 3), ValueError)],
)
def test_what_is_no_decay(given: Any, error: Any) -> None:
    with pytest.raises(error, match="decay_or_rank must be"):
        decays_of(given)


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "ParamDimRule": ({}, "D-RTRL, diagonal recurrence"),
    "EPropRule": (
        {"trace_filter": "kappa", "kappa": 0.5, "downstream": "step"},
        "e-prop, kappa 0.5",
    ),
    "IODimRule": ({"trace_factorization": "io_factorized", "decay": 3}, "pp_prop, decays 0.5"),
    "SnApRule": (
        {"recurrence_scope": "sparse_n", "sparse_n": 2, "downstream": "step"},
        "SnAp-2",
    ),
    "InfluenceRule": (
        {"recurrence_scope": "sparse_n", "sparse_n": 1, "downstream": "linear"},
        "SnAp-1",
    ),
    "UORORule": ({"trace_factorization": "random_projection", "recurrence_scope": "full"}, "UORO"),
    "Resignalled": ({"learning_signal": "random_feedback"}, "D-RTRL, diagonal recurrence, Random"),
    "TracelessRule": (
        {"trace_factorization": "none", "learning_signal": "bootstrapped"},
        "TracelessRule",
    ),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_configuration_makes_its_executor_and_its_rule(kind: str) -> None:
    options, name = RULES[kind]
    config = bt.ETraceConfig(**options)
    model = zoo.Leaky()
    brainstate.nn.init_all_states(model, batch_size=2)
    executor = config.executor(model)
    executor.compile_graph(jnp.ones((2, zoo.IN)))
    rule = config.rule(executor)
    assert type(rule).__name__ == kind and rule.name.startswith(name)
    assert executor.jacobians == config.jacobians == rule.executor.jacobians


def test_e_prop_runs_on_a_step_with_its_filters() -> None:
    model = brainstate.nn.init_all_states(zoo.Leaky(), batch_size=2)
    executor = bt.ETraceConfig(trace_filter="kappa", kappa=0.5).executor(model)
    executor.compile_graph(jnp.ones((2, zoo.IN)))
    assert executor.options["kappa"] == executor.graph.moving.kappa == 0.5
    assert bt.ETraceConfig(learning_signal="modulatory").downstream == "step"


def test_windows_of_signals() -> None:
    dni = bt.ETraceConfig(**RULES["TracelessRule"][0])
    assert dni.needs_windows and dni.has_windows
    modulated = bt.ETraceConfig(learning_signal="modulatory")
    assert not modulated.needs_windows and not modulated.has_windows


def test_more_jacobians_than_needed_may_be_asked_for() -> None:
    model = zoo.Leaky()
    brainstate.nn.init_all_states(model, batch_size=2)
    step = bt.ETraceConfig(downstream="step")
    options = {"recurrence_scope": "coupled", "downstream": "step"}
    assert step.executor(model, "whole").options == options
    full = bt.ETraceConfig(recurrence_scope="full", downstream="step")
    assert full.executor(model, "near").jacobians == "whole"
    assert replace(full, downstream="linear").executor(model).jacobians == "near"
