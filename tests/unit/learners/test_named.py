# SPDX-License-Identifier: Apache-2.0
"""Calls as code for version 0.2 of the library makes them."""

from __future__ import annotations

import inspect
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.executor.graph_executor import compile_options
from braintrace.testing import assert_tree_close
from tests import zoo

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


class Drawn(zoo.Leaky):
    """A model whose initial state is drawn."""

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size=batch_size, **kwargs)
        state = next(iter(self.states(brainstate.HiddenState).values()))
        state.value = state.value + brainstate.random.randn(*state.value.shape)


def test_seed_is_of_the_initial_states_only() -> None:
    def state_and_next(*, drawn_before: int, seed: int) -> tuple[Any, Any]:
        model = Drawn()
        brainstate.random.seed(drawn_before)
        learner = bt.compile(model, "d_rtrl", X, batch_size=2, seed=seed)
        (state,) = learner.hidden_states.values()
        return state.value, brainstate.random.rand()

    (a, after), (b, _), (c, _) = (
        state_and_next(drawn_before=before, seed=seed) for before, seed in ((0, 5), (1, 5), (0, 6))
    )
    assert jnp.array_equal(a, b)
    assert not jnp.array_equal(a, c)
    brainstate.random.seed(0)
    assert after == brainstate.random.rand()


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    learner = compiled("d_rtrl", verbose=2)
    assert capsys.readouterr().out == f"{learner.report}\n"
    with pytest.raises(ValueError, match="verbose must be 0, 1 or 2, got 3"):
        compiled("d_rtrl", verbose=3)


@pytest.mark.parametrize(
    ("algorithm", "option"),
    [
        ("D_RTRL", {"fast_solve": False}),
        (bt.D_RTRL, {"chunked_trace": True}),
        (bt.SnAp, {"snap_max_jacobian_elements": 100}),
    ],
)
def test_options_without_an_effect_are_a_warning(algorithm: Any, option: Any) -> None:
    with pytest.warns(UserWarning, match=f"the option {next(iter(option))} .* has no effect"):
        compiled(algorithm, **option)


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


# --- a config as an option ---------------------------------------------------------------------


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


# --- the modulator -----------------------------------------------------------------------------


def test_a_config_with_a_modulator_takes_one() -> None:
    learner = compiled(CONFIG(learning_signal="modulatory"))
    learner.modulator = 0.5
    assert_tree_close(grads(learner), grads(compiled("three_factor", modulator=0.5)))
    other = compiled("d_rtrl", config=CONFIG(learning_signal="modulatory"))
    with pytest.raises(ValueError, match=r"needs a modulator.*ThreeFactor\(model, config=...\)"):
        grads(other)


def test_an_assigned_modulator_counts_in_what_is_compiled_already() -> None:
    learner = compiled("three_factor")

    def of_step(x: Any) -> Any:
        return jnp.mean(learner(x) ** 2)

    def found() -> Any:
        learner.reset_state(batch_size=2, model_states=True)
        return learner.etrace_grad(XS, step_fn=of_step)

    learner.modulator = 1.0
    once = found()
    state = brainstate.ShortTermState(jnp.array(4.0))
    for modulator, factor in ((-2.0, -2.0), (jnp.full((2, 1), 3.0), 3.0), (state, 4.0), (5.0, 5.0)):
        learner.modulator = modulator
        assert (
            learner.modulator is state
            if modulator is state
            else (jnp.array_equal(learner.modulator, modulator))
        )
        assert_tree_close(found(), jax.tree.map(lambda g, f=factor: f * g, once))


def test_a_modulator_inside_of_a_step() -> None:
    learner = compiled("three_factor")

    def of_step(x: Any, reward: Any) -> Any:
        learner.modulator = -reward
        return jnp.mean(learner(x) ** 2)

    rewards = jnp.arange(4.0)
    with pytest.raises(ValueError, match="is assigned for the first time inside"):
        learner.etrace_grad(XS, rewards, step_fn=of_step)
    learner.modulator = 0.0
    learner.reset_state(batch_size=2, model_states=True)
    assigned = learner.etrace_grad(XS, rewards, step_fn=of_step)
    learner.reset_state(batch_size=2, model_states=True)
    given = learner.etrace_grad(
        XS, rewards, step_fn=lambda x, r: jnp.mean(learner(x, modulator=-r) ** 2)
    )
    assert_tree_close(assigned, given)


# --- remedies ----------------------------------------------------------------------------------


def test_an_argument_of_another_shape_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"call reset_state\(batch_size=\.\.\., model_states=True"):
        compiled("d_rtrl")(jnp.ones((5, zoo.IN)))
    with pytest.raises(ValueError, match=r"wrap arguments .* in braintrace\.MultiStepData"):
        grads(compiled("d_rtrl", vjp_method="multi-step"), chunk_size=2)


# --- signatures, options and reports ------------------------------------------------------------


LEARNERS = [
    getattr(bt, name)
    for name in "D_RTRL pp_prop EProp OSTLRecurrent OSTLFeedforward SnAp RTRL UORO ThreeFactor DNI "
    "ETraceVjpAlgorithm ETraceAlgorithm".split()
]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.__name__)
def test_a_signature_shows_every_option(learner: type) -> None:
    shown = inspect.signature(learner).parameters
    kinds = {p.kind for p in shown.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert {"model", "name"} | compile_options() - {"recurrence_scope"} <= {*shown}
    assert learner is bt.ETraceAlgorithm or "vjp_method" in shown


def test_a_signature_of_a_subclass_and_of_a_learner() -> None:
    class Own(bt.D_RTRL):
        def __init__(self, model: Any, depth: int, **options: Any) -> None:
            super().__init__(model, **options)

    names = [*inspect.signature(Own).parameters]
    assert names[:2] == ["model", "depth"] and "recurrence_scope" in names
    assert [*inspect.signature(compiled("d_rtrl")).parameters] == ["args", "kwargs"]


def test_options_by_position_are_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="by name: vjp_method='multi-step'"):
        assert bt.SnAp(zoo.Leaky(), 1, "multi-step").vjp_method == "multi-step"
    with pytest.raises(TypeError, match="options of D_RTRL are given by name, got 3"):
        bt.D_RTRL(zoo.Leaky(), "single-step", 3)


def test_a_seed_may_be_a_key() -> None:
    def drawn(seed: Any) -> Any:
        (state,) = bt.compile(Drawn(), "d_rtrl", X, batch_size=2, seed=seed).hidden_states.values()
        return state.value

    assert jnp.array_equal(drawn(jax.random.PRNGKey(3)), drawn(3))


def test_a_report_can_be_called_shown_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    report = compiled("d_rtrl").report
    assert report() == str(report) == report and "learning rule" in report
    assert report.splitlines()[-1].startswith("block_size='auto'")
    report.show()
    assert capsys.readouterr().out == f"{report}\n"
    report.show(2)
    assert "relation_included" in capsys.readouterr().out
    assert report.counts["hidden_groups"] == report.counts["etrace_weights"] == 1
    assert report.counts["errors"] == 0


def test_a_call_with_what_a_learner_does_not_take() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'modulator'"):
        compiled("d_rtrl")(X, modulator=1.0)
