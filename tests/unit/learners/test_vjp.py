# SPDX-License-Identifier: Apache-2.0
"""Learners whose rule is a configuration."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.learners.vjp import by_name, check_method, preset
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.drivers.net import Net, made, summed
from tests.unit.learners.bench import Mixed


@pytest.mark.parametrize("dtype", [int, "int32", jnp.bool_, "no such dtype", 3, object()])
def test_trace_dtype_is_a_floating_point_dtype(dtype: Any) -> None:
    model = Mixed()
    with pytest.raises((TypeError, ValueError), match="trace_dtype must be a floating-point dtype"):
        bt.D_RTRL(model, trace_dtype=dtype)


X = jnp.ones((2, zoo.IN))


XS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, zoo.IN)))


CONFIG = bt.ETraceConfig


FACTORIZED = CONFIG(trace_factorization="io_factorized", decay=(0.9, 0.0))


def compiled(algorithm: Any, model: Any = None, **options: Any) -> Any:
    brainstate.random.seed(3)
    return bt.compile(model or zoo.Leaky(), algorithm, X, batch_size=2, **options)


def grads(learner: Any, **options: Any) -> Any:
    learner.reset_state(batch_size=2, model_states=True)
    return learner.etrace_grad(XS, step_fn=lambda x: jnp.mean(learner(x) ** 2), **options)


@pytest.mark.parametrize(
    ("algorithm", "config", "options"),
    [
        (bt.ParamDimVjpAlgorithm, CONFIG(trace_filter="kappa", kappa=0.5), {}),
        (bt.IODimVjpAlgorithm, FACTORIZED, {"decay_or_rank": 0.9}),
    ],
)
def test_a_config_takes_the_place_of_a_preset(algorithm: Any, config: Any, options: Any) -> None:
    by_option = compiled(algorithm, config=config, **options)
    assert by_option.config == config
    assert_tree_close(grads(by_option), grads(compiled(config)))


@pytest.mark.parametrize(
    ("algorithm", "options", "error", "says"),
    [
        ("d_rtrl", {"config": FACTORIZED}, ValueError, "must have trace_factorization='per_param'"),
        ("d_rtrl", {"config": "d_rtrl"}, TypeError, "config must be an ETraceConfig, got str"),
        (
            "d_rtrl",
            {"config": CONFIG(), "recurrence_scope": "coupled"},
            ValueError,
            "'coupled' contradicts the one of config, 'diagonal'",
        ),
        ("three_factor", {"config": CONFIG()}, ValueError, "learning_signal='modulatory'"),
        ("snap", {"config": CONFIG()}, TypeError, "config is no option of a learner whose name"),
        ("uoro", {"config": CONFIG()}, TypeError, "config is no option of a learner whose name"),
        ("eprop", {"config": CONFIG()}, TypeError, "config is no option of a learner whose name"),
        ("dni", {"config": CONFIG()}, TypeError, "config is no option of a learner whose name"),
        (CONFIG(), {"config": CONFIG()}, TypeError, "a config is given twice"),
        ("snap", {"recurrence_scope": "coupled"}, TypeError, "recurrence_scope is no option of"),
    ],
)
def test_a_config_that_is_of_another_rule(
    algorithm: Any, options: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        compiled(algorithm, **options)


def test_a_key_of_random_feedback_beside_a_config() -> None:
    config = CONFIG(learning_signal="random_feedback")
    by_key = compiled(config, random_feedback_key=5)
    assert by_key.config.seed == 5
    assert compiled("d_rtrl", random_feedback_key=5).config == CONFIG()


def test_options_by_position_are_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="by name: vjp_method='multi-step'"):
        assert bt.SnAp(zoo.Leaky(), 1, "multi-step").vjp_method == "multi-step"
    with pytest.raises(TypeError, match="options of D_RTRL are given by name, got 3"):
        bt.D_RTRL(zoo.Leaky(), "single-step", 3)


@pytest.mark.parametrize(
    ("learner", "method"), [(bt.ThreeFactor, "multi-step"), (bt.DNI, "single-step")]
)
def test_rules_that_have_one_method(learner: Any, method: str) -> None:
    with pytest.raises(ValueError, match="vjp_method must be"):
        learner(Net(), vjp_method=method)


@pytest.mark.parametrize(
    ("options", "learner"),
    [
        ({"learning_signal": "modulatory"}, "ThreeFactor"),
        ({"learning_signal": "bootstrapped", "trace_factorization": "none"}, "DNI"),
    ],
)
def test_signals_that_have_a_learner_of_their_own(options: Any, learner: str) -> None:
    """The base class has neither a modulator nor predictions."""
    config = bt.ETraceConfig(**options)
    method = "multi-step" if config.needs_windows else "single-step"
    with pytest.raises(ValueError, match=rf"is that of braintrace\.{learner}"):
        bt.ETraceVjpAlgorithm(Net(), vjp_method=method, config=config)
    assert type(made(config)).__name__ == learner


def test_a_configuration_is_an_algorithm(data: Any) -> None:
    config = bt.ETraceConfig(trace_factorization="io_factorized", decay=0.7)
    a, b = made(config), made("pp_prop", decay_or_rank=0.7)
    grads = [one.etrace_grad(*data, step_fn=summed(one)) for one in (a, b)]
    assert_tree_close(*grads)


def test_an_option_by_position_is_taken_once() -> None:
    assert by_name(bt.D_RTRL, "multi-step") == "multi-step"
    with pytest.warns(DeprecationWarning, match="options of D_RTRL are given by name"):
        assert by_name(bt.D_RTRL, "single-step", "multi-step") == "multi-step"
    with pytest.raises(TypeError, match="given twice, by position and by name"):
        by_name(bt.D_RTRL, "multi-step", "single-step")


@pytest.mark.parametrize(
    ("signal", "method", "legal"),
    [
        ("symmetric", "x", "'single-step' or 'multi-step'"),
        ("modulatory", "multi-step", "'single-step'"),
        ("bootstrapped", "single-step", "'multi-step'"),
    ],
)
def test_methods_of_signals(signal: str, method: str, legal: str) -> None:
    traces = {"trace_factorization": "none"} if signal == "bootstrapped" else {}
    config = CONFIG(learning_signal=signal, **traces)
    with pytest.raises(ValueError, match=f"vjp_method must be {legal} with learning_signal="):
        check_method(method, config)


def test_a_preset_is_replaced_where_the_name_leaves_it_open() -> None:
    own, given = CONFIG(), CONFIG(trace_filter="kappa", kappa=0.5)
    assert preset(own, {"name": "x"}) == {"name": "x", "config": own}
    assert preset(own, {"config": given}, "trace_factorization") == {"config": given}
    with pytest.raises(TypeError, match="no option of a learner whose name says its rule"):
        preset(own, {"config": given})
