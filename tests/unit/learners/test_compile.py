# SPDX-License-Identifier: Apache-2.0
"""From a model and a name to a ready learner."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.learners.compile import plugin
from tests import zoo
from tests.unit.learners.bench import BATCH, IN, Mixed


@pytest.mark.parametrize(
    ("algorithm", "error", "says"),
    [
        ("rtlr", ValueError, r"unknown algorithm 'rtlr'; known are \['d_rtrl'"),
        ("", ValueError, r"unknown algorithm ''"),
        (zoo.Leaky, TypeError, r"algorithm must be a name or a learner class, got .*Leaky"),
        (bt.D_RTRL.update, TypeError, r"algorithm must be a name or a learner class"),
        (None, TypeError, r"algorithm must be a name or a learner class, got None"),
        (bt.ETraceAlgorithm, (TypeError, NotImplementedError), r"ETraceAlgorithm.*make_rule"),
    ],
)
def test_unknown_algorithms(algorithm: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        bt.compile(Mixed(), algorithm, jnp.ones((BATCH, IN)), batch_size=BATCH)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"pp_prop needs the option 'decay_or_rank'"):
        bt.compile(zoo.Leaky(), "pp_prop", jnp.ones((2, zoo.IN)), batch_size=2)


X = jnp.ones((2, zoo.IN))


def compiled(algorithm: Any, model: Any = None, **options: Any) -> Any:
    brainstate.random.seed(3)
    return bt.compile(model or zoo.Leaky(), algorithm, X, batch_size=2, **options)


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


def test_a_seed_may_be_a_key() -> None:
    def drawn(seed: Any) -> Any:
        (state,) = bt.compile(Drawn(), "d_rtrl", X, batch_size=2, seed=seed).hidden_states.values()
        return state.value

    assert jnp.array_equal(drawn(jax.random.PRNGKey(3)), drawn(3))


def test_inputs_by_name_are_no_options() -> None:
    """A name that is both is the option; one that is neither is told."""

    class Frozen(zoo.Leaky):
        def update(self, x: Any, frozen: Any = 1.0, gain: Any = 1.0) -> Any:
            return frozen * gain * super().update(x)

    learner = bt.compile(Frozen(), "d_rtrl", X, gain=2.0, frozen=(), batch_size=2)
    assert learner.graph.module_info.num_args == 2
    assert jnp.allclose(learner(X, gain=3.0), 3.0 * jnp.tanh(learner.model.h.value))
    with pytest.raises(TypeError, match="unknown option 'gian'"):
        bt.compile(Frozen(), "d_rtrl", X, gian=2.0, batch_size=2)
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        bt.compile(Frozen(), "d_rtrl", X, x=X, batch_size=2)


def test_a_sequence_of_examples_in_a_wrapper_counts_by_its_step() -> None:
    steps = bt.MultiStepData(jnp.stack([X] * 5))
    learner = bt.compile(zoo.Leaky(), "d_rtrl", steps, vmap=True)
    assert learner(X).shape == (2, zoo.HIDDEN)


@pytest.mark.parametrize("name", ["d_rtrl", "D-RTRL", "D_RTRL"])
def test_names_are_read_as_people_write_them(name: str) -> None:
    assert type(compiled(name)) is bt.D_RTRL


def test_core_offers_its_learners_as_a_plugin_does() -> None:
    info = plugin.braintrace_plugin_info()
    assert (info.family, info.distribution, info.version) == (
        "core", "braintrace-core", bt.__version__,
    )  # fmt: skip
    offered = plugin.braintrace_algorithms(None)
    assert offered["pp_prop"] is offered["es_d_rtrl"] is bt.pp_prop
    assert offered["eprop"] is offered["e_prop"] is bt.EProp
    assert all(issubclass(learner, bt.ETraceAlgorithm) for learner in offered.values())


def test_a_class_must_be_one_of_learners() -> None:
    with pytest.raises(TypeError, match="algorithm must be a name or a learner class, got <class"):
        compiled(int)


def test_a_model_for_one_example_is_compiled_for_several() -> None:
    learner = bt.compile(zoo.Leaky(), "d_rtrl", X, vmap=True)
    assert learner(X).shape == (2, zoo.HIDDEN)
    assert learner.model.h.value.shape == (2, zoo.HIDDEN)
