# SPDX-License-Identifier: Apache-2.0
"""Calls as code for version 0.2 of the library makes them."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests import zoo

X = jnp.ones((2, zoo.IN))
XS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, zoo.IN)))
CONFIG = bt.ETraceConfig


def compiled(algorithm: Any, model: Any = None, **options: Any) -> Any:
    brainstate.random.seed(3)
    return bt.compile(model or zoo.Leaky(), algorithm, X, batch_size=2, **options)


def grads(learner: Any, **options: Any) -> Any:
    learner.reset_state(batch_size=2, model_states=True)
    return learner.etrace_grad(XS, step_fn=lambda x: jnp.mean(learner(x) ** 2), **options)


def test_a_learner_has_a_name() -> None:
    assert compiled("D_RTRL", name="online").name == "online"


def test_traces_and_report_by_their_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    learner = compiled("d_rtrl")
    learner(X)
    assert all(jnp.any(leaf) for trace in learner.traces for leaf in jax.tree.leaves(trace.value))
    learner.init_etrace_state()
    assert not any(
        jnp.any(leaf) for trace in learner.traces for leaf in jax.tree.leaves(trace.value)
    )
    assert int(learner.running_index.value) == 0
    assert learner.show_graph(verbose=False, return_msg=True) == learner.report
    assert learner.show_graph() is None
    assert capsys.readouterr().out == f"{learner.report}\n"


def test_windows_of_one_step_are_steps() -> None:
    learner = compiled("d_rtrl")
    assert_tree_close(grads(learner, chunk_size=1), grads(learner))


def test_uoro_learns_in_windows_unless_told() -> None:
    config = CONFIG(trace_factorization="random_projection", recurrence_scope="full")
    assert compiled(config).vjp_method == "multi-step"
    assert compiled("uoro").vjp_method == "multi-step"
    assert compiled("uoro", vjp_method="single-step").vjp_method == "single-step"
    with pytest.warns(DeprecationWarning, match="by name: vjp_method='single-step'"):
        assert bt.UORO(zoo.Leaky(), 7, "single-step").vjp_method == "single-step"


# --- a config as an option ---------------------------------------------------------------------


# --- the modulator -----------------------------------------------------------------------------


# --- remedies ----------------------------------------------------------------------------------


def test_an_argument_of_another_shape_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"call reset_state\(batch_size=\.\.\., model_states=True"):
        compiled("d_rtrl")(jnp.ones((5, zoo.IN)))
    with pytest.raises(ValueError, match=r"wrap arguments .* in braintrace\.MultiStepData"):
        grads(compiled("d_rtrl", vjp_method="multi-step"), chunk_size=2)


# --- signatures, options and reports ------------------------------------------------------------


def test_a_call_with_what_a_learner_does_not_take() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'modulator'"):
        compiled("d_rtrl")(X, modulator=1.0)


@pytest.mark.parametrize(
    ("learner", "options", "config"),
    [
        (bt.D_RTRL, {"recurrence_scope": "coupled"}, CONFIG(recurrence_scope="coupled")),
        (bt.pp_prop, {"decay_or_rank": 3}, CONFIG(trace_factorization="io_factorized", decay=3)),
        (bt.OSTLRecurrent, {}, CONFIG(recurrence_scope="coupled")),
        (bt.OSTLFeedforward, {}, CONFIG(trace_factorization="io_factorized", decay=0.0)),
        (bt.SnAp, {"n": 2}, CONFIG(recurrence_scope="sparse_n", sparse_n=2, downstream="linear")),
        (bt.RTRL, {}, CONFIG(recurrence_scope="full", downstream="linear")),
        (
            bt.UORO,
            {"projection_key": 7},
            CONFIG(trace_factorization="random_projection", recurrence_scope="full", seed=7),
        ),
    ],
)
def test_a_name_is_a_configuration(learner: Any, options: Any, config: Any) -> None:
    assert learner(zoo.Leaky(), **options).config == config


def test_decays_and_other_names() -> None:
    learner = bt.pp_prop(zoo.Leaky(), (3, 0.25))
    assert (learner.decay_x, learner.decay_f) == (0.5, 0.25)
    assert bt.ES_D_RTRL is bt.IODimVjpAlgorithm is bt.pp_prop
    assert bt.ParamDimVjpAlgorithm is bt.D_RTRL
    with pytest.raises(ValueError, match="recurrence_scope must be one of .*got 'full'"):
        bt.D_RTRL(zoo.Leaky(), recurrence_scope="full")
