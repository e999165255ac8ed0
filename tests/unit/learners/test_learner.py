# SPDX-License-Identifier: Apache-2.0
"""Wrong use is refused with a text that names the argument, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from braintrace.algorithms import ParamDimRule
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.learners.bench import (
    _BENCH,
    BATCH,
    COMPILED,
    HIDDEN,
    IN,
    STEPS,
    Bench,
    Mixed,
    refused,
)
from tests.zoo import weight

# every case below is a new function at one place
pytestmark = pytest.mark.filterwarnings("ignore:step_fn .* is a new function:UserWarning")


def test_the_bench_is_alive(bench: Bench) -> None:
    """All gradients are there, and all states move."""
    (grads, losses), after = bench.reference
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in grads.values())
    assert losses.shape == (STEPS,)
    for path, value in after.items():
        before = {"/".join(map(str, p)): v for p, v in bench.start.items()}[path]
        moved = any(
            not jnp.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(value), strict=True)
        )
        assert moved == (path not in ("w", "out")), path


# --- before compile_graph ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda learner, x: learner(x),
        lambda learner, x: learner.update(x),
        lambda learner, x: learner.graph,
        lambda learner, x: learner.report,
        lambda learner, x: learner.rule,
        lambda learner, x: learner.hidden_states,
        lambda learner, x: learner.other_states,
        lambda learner, x: learner.get_etrace_of(("w",)),
        lambda learner, x: learner.etrace_evolve(x[None]),
        lambda learner, x: learner.etrace_grad(x[None], step_fn=lambda x: learner(x).sum()),
        lambda learner, x: learner.etrace_grad(
            x[None], step_fn=lambda x: learner(x).sum(), block_size=1
        ),
        lambda learner, x: learner.reset_state(batch_size=BATCH),
        lambda learner, x: learner.reset_state(batch_size=BATCH, model_states=True),
    ],
)
def test_use_before_compile_graph(use: Callable[..., Any]) -> None:
    model = Mixed()
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    model.h.value = model.h.value + 1.0
    learner = bt.D_RTRL(model)
    before = {path: s.value for path, s in brainstate.graph.states(model).items()}
    with pytest.raises(bt.CompilationError, match=r"compile_graph\(\*example_inputs\)"):
        use(learner, jnp.ones((BATCH, IN)))
    for path, state in brainstate.graph.states(model).items():
        assert state.value is before[path], path
    assert learner.running_index.value == 0


def test_a_learner_is_shown_without_what_it_was_compiled_to(bench: Bench) -> None:
    shown = repr(bench.learner)
    assert "h=HiddenState" in shown and "vjp_method" in shown
    assert "ParamDimRule" not in shown and "jaxpr" not in shown


def test_a_failed_compile_keeps_the_compiled_learner(bench: Bench) -> None:
    with refused(bench, (ValueError, TypeError, bt.CompilationError), "shape|incompatible"):
        bench.learner.compile_graph(jnp.ones((BATCH, IN + 1)))


# --- models -----------------------------------------------------------------------------------


def test_missing_states_are_named() -> None:
    model = Mixed()
    with pytest.raises(bt.CompilationError, match=r"'h'.*init_all_states\(model, batch_size=...\)"):
        bt.D_RTRL(model).compile_graph(jnp.ones((BATCH, IN)))


def test_missing_states_of_a_cell_are_named() -> None:
    model = bt.nn.GRUCell(IN, HIDDEN)
    with pytest.raises((bt.CompilationError, RuntimeError), match=r"'h'.*init_all_states"):
        bt.D_RTRL(model).compile_graph(jnp.ones((BATCH, IN)))


@pytest.mark.parametrize("model", [None, 3, lambda x: x, zoo.Leaky])
def test_a_model_is_a_module(model: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a brainstate.nn.Module, got "):
        bt.D_RTRL(model)
    with pytest.raises(TypeError, match=r"model must be a brainstate.nn.Module, got "):
        bt.compile(model, "d_rtrl", jnp.ones((BATCH, IN)), batch_size=BATCH)
    with pytest.raises(TypeError, match=r"model must be a brainstate.nn.Module, got "):
        bt.compile_etrace_graph(model, jnp.ones((BATCH, IN)))


class Stateless(zoo.Model):
    names = ()

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        return bt.matmul(x, self.w.value)


class Parameterless(zoo.Model):
    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + x.sum(-1, keepdims=True)
        return self.h.value


class WritesParameter(zoo.Leaky):
    def update(self, x: Any) -> Any:
        out = super().update(x)
        self.w.value = 0.9 * self.w.value
        return out


class ChangesShape(zoo.Leaky):
    def update(self, x: Any) -> Any:
        self.h.value = self.h.value[..., None] + bt.matmul(x, self.w.value)[..., None]
        return self.h.value


class Broadcasts(zoo.Leaky):
    """The states were initialised without a batch, the arguments have one."""

    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros(HIDDEN)


class ChangesDtype(zoo.Leaky):
    def update(self, x: Any) -> Any:
        self.h.value = (self.h.value + bt.matmul(x, self.w.value)).astype(jnp.float32)
        return self.h.value


class ChangesStructure(zoo.Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.last = brainstate.ShortTermState(jnp.zeros(()))

    def update(self, x: Any) -> Any:
        self.last.value = (x.sum(), x.sum())
        return super().update(x)


class Integer(zoo.Leaky):
    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros((BATCH, HIDDEN), jnp.int32)

    def update(self, x: Any) -> Any:
        self.h.value = (self.h.value + bt.matmul(x, self.w.value)).astype(jnp.int32)
        return self.h.value


class Empty(zoo.Leaky):
    """A layer of no units."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 0)

    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros((BATCH, 0))


class Complex(zoo.Leaky):
    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros((BATCH, HIDDEN), complex)


class MakesState(zoo.Leaky):
    def update(self, x: Any) -> Any:
        if not hasattr(self, "seen"):
            self.seen = brainstate.HiddenState(jnp.zeros((BATCH, HIDDEN)))
        return super().update(x)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Stateless, r"no brainstate.HiddenState.*init_all_states"),
        (Parameterless, r"no brainstate.ParamState"),
        (WritesParameter, r"writes its parameter w "),
        (ChangesShape, r"state h is f(loat)?64\[2,4\] before a step and f(loat)?64\[2,4,4?1?\]"),
        (Broadcasts, r"state h is f(loat)?64\[4\] before a step and f(loat)?64\[2,4\] .*batch"),
        (ChangesDtype, r"state h is f(loat)?64\[2,4\] before a step and f(loat)?32\[2,4\] after"),
        (ChangesStructure, r"structure"),
        (Integer, r"no brainstate.HiddenState of a floating-point dtype"),
        (Empty, r"state h has shape \(2, 0\), which holds no elements"),
        (Complex, r"state h has the complex dtype complex128.*zoo.py:\d+.*; .*two states"),
        (MakesState, r"the step makes the state seen, .*__init__ or init_state"),
    ],
)
def test_models_that_cannot_be_compiled(model: Any, says: str) -> None:
    built = model()
    brainstate.nn.init_all_states(built, batch_size=BATCH)
    before = {path: s.value for path, s in brainstate.graph.states(built).items()}
    with pytest.raises((bt.CompilationError, ValueError), match=says):
        bt.D_RTRL(built).compile_graph(jnp.ones((BATCH, IN)))
    for path, state in brainstate.graph.states(built).items():
        if path not in (
            ("last",),
            ("seen",),
        ):  # brainstate refuses it by itself, and keeps what was written
            assert state.value is before[path], path


class Raises(zoo.Leaky):
    """Fails after it has written its state, while it is traced."""

    def update(self, x: Any) -> Any:
        super().update(x)
        raise KeyError("in the middle of a step")


def test_a_model_that_raises_keeps_its_states_and_its_error() -> None:
    model = Raises()
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    before = model.h.value
    with pytest.raises(KeyError, match="in the middle"):
        bt.D_RTRL(model).compile_graph(jnp.ones((BATCH, IN)))
    assert model.h.value is before


class AttributeMissing(zoo.Leaky):
    def update(self, x: Any) -> Any:
        return super().update(x) * self.gain


def test_a_missing_attribute_is_named() -> None:
    model = AttributeMissing()
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    with pytest.raises((bt.CompilationError, AttributeError), match="'gain'"):
        bt.D_RTRL(model).compile_graph(jnp.ones((BATCH, IN)))


# --- options ----------------------------------------------------------------------------------


def test_a_learner_is_no_model(bench: Bench) -> None:
    with pytest.raises(TypeError, match="model is a learner already"):
        bt.D_RTRL(bench.learner)


def test_an_example_argument_that_is_no_array() -> None:
    with pytest.raises(TypeError, match=r"argument\[0\]\['mode'\] is a str"):
        bt.compile(Mixed(), "d_rtrl", {"mode": "fast"}, batch_size=BATCH)


# --- one step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((jnp.ones((5, IN)),), rf"shape \(5, 3\) .*{COMPILED}.*batch size"),
        ((jnp.ones((BATCH, IN + 1)),), rf"shape \(2, 4\) .*{COMPILED}"),
        ((jnp.ones(IN),), rf"shape \(3,\) .*{COMPILED}"),
        ((jnp.ones((1, BATCH, IN)),), rf"shape \(1, 2, 3\) .*{COMPILED}"),
        ((2.0,), rf"shape \(\) .*{COMPILED}"),
        ((jnp.ones((BATCH, IN), jnp.float32),), rf"dtype float32.*{COMPILED}"),
        ((jnp.ones((BATCH, IN), jnp.int32),), rf"dtype int32.*{COMPILED}"),
        ((np.ones((BATCH, IN), bool),), rf"dtype bool.*{COMPILED}"),
        (({"x": jnp.ones((BATCH, IN))},), r"structure.*compiled for"),
        ((None,), r"structure.*compiled for"),
        ((), r"structure.*compiled for|argument"),
        ((jnp.ones((BATCH, IN)), jnp.ones((BATCH, IN))), r"structure.*compiled for|argument"),
    ],
)
def test_an_argument_unlike_the_example(bench: Bench, args: Any, says: str) -> None:
    with refused(bench, (ValueError, TypeError), rf"(?s)argument.*{says}"):
        bench.learner(*args)
    with refused(bench, (ValueError, TypeError), rf"(?s)argument.*{says}"):
        brainstate.transform.grad(lambda: bench.learner(*args).sum(), bench.learner.param_states)()


@pytest.mark.parametrize("arg", ["text", object()])
def test_an_argument_that_is_no_array(bench: Bench, arg: Any) -> None:
    with refused(bench, (TypeError, ValueError), r"argument\[0\]"):
        bench.learner(arg)


def test_a_name_that_the_model_does_not_take(bench: Bench) -> None:
    with refused(bench, TypeError, "unexpected keyword argument 'gain'"):
        bench.learner(bench.xs[0], gain=1.0)


class Named(zoo.Leaky):
    """Takes what is behind its input by name."""

    def update(self, x: Any, gain: Any = 1.0, *, shift: Any = 0.0) -> Any:
        return gain * super().update(x) + shift


@pytest.mark.parametrize("how", ["d_rtrl", "eprop", "three_factor", "windows", "vmap"])
def test_arguments_by_name_are_those_by_place(how: str) -> None:
    """When compiling, in calls and their gradients, in every driver, after a reset."""
    x, gain, shift = jnp.ones((BATCH, IN)), jnp.full(BATCH, 2.0), jnp.full(BATCH, 3.0)
    wide = {"gain": gain[:, None], "shift": shift[:, None]} if how != "vmap" else None
    named = {"gain": gain, "shift": shift} if wide is None else wide
    options: dict[str, Any] = {
        "windows": {"vjp_method": "multi-step"},
        "vmap": {"vmap": True},
        "three_factor": {"modulator": 1.0},
    }.get(how, {})
    algorithm = "d_rtrl" if how in ("windows", "vmap") else how
    size = {} if how == "vmap" else {"batch_size": BATCH}

    def compiled(model: Any, *args: Any, **by_name: Any) -> Any:
        brainstate.random.seed(0)
        return bt.compile(model(), algorithm, *args, **by_name, **size, **options)

    by_name = compiled(Named, x=x, **named)
    mixed = compiled(Named, x, named["gain"], shift=named["shift"])

    class Fixed(Named):
        def update(self, x: Any) -> Any:  # type: ignore[override]
            return super().update(x, 2.0, shift=3.0)

    by_place = compiled(Fixed, x)
    again = {"modulator": 0.5} if how == "three_factor" else {}
    calls = {
        by_name: lambda x: by_name(shift=named["shift"], x=x, gain=named["gain"], **again),
        mixed: lambda x: mixed(x, shift=named["shift"], gain=named["gain"], **again),
        by_place: lambda x: by_place(x, **again),
    }
    xs = jnp.cos(jnp.arange(3 * BATCH * IN, dtype=float)).reshape(3, BATCH, IN)

    def numbers(learner: Any) -> Any:
        call = calls[learner]
        loss = lambda x: (call(x) ** 2).sum()  # noqa: E731
        found = [learner.etrace_evolve(xs, step_fn=call, return_outputs=True)]
        grad = brainstate.transform.grad(lambda: loss(xs[0]), learner.param_states)
        found += [grad(), learner.etrace_grad(xs, step_fn=loss, return_value=True)]
        found += [learner.etrace_update(xs, step_fn=loss, optimizer=optax.sgd(0.01))]
        if how == "windows":
            steps = {name: bt.MultiStepData(jnp.stack([v] * 3)) for name, v in named.items()}
            steps = {} if learner is by_place else steps
            found += [learner(x=bt.MultiStepData(xs), **steps)]
        return found

    reference = numbers(by_place)
    for learner in (by_name, mixed):
        assert_tree_close(numbers(learner), reference)
    with pytest.raises(ValueError, match=r"argument\[2\]\['shift'\] has shape"):
        by_name(x, named["gain"], shift=jnp.ones((BATCH, 7)))
    with pytest.raises(ValueError, match="a default is given in both or in neither"):
        mixed(x)
    with pytest.raises(ValueError, match=r"steps in a list become one array by jnp.stack"):
        mixed.etrace_grad([x, x], step_fn=mixed)
    if how == "d_rtrl":
        by_name.reset_state(5, model_states=True)
        wider = {name: jnp.full((5, 1), value) for name, value in (("gain", 2.0), ("shift", 3.0))}
        assert by_name(x=jnp.ones((5, IN)), **wider).shape == (5, HIDDEN)


@contextmanager
def replaced(state: Any, value: Any) -> Iterator[None]:
    right = state.value
    state.value = value
    try:
        yield
    finally:
        state.value = right
        _BENCH.clear()


def test_a_hidden_state_of_another_shape(bench: Bench) -> None:
    """Someone set the model's state by hand."""
    with replaced(bench.model.h, jnp.zeros((BATCH + 1, HIDDEN))):
        for use in (lambda: bench.learner(bench.xs[0]), bench.grad):
            with pytest.raises(
                (ValueError, bt.CompilationError), match=r"\bh\b.*\(3, 4\).*\(2, 4\)"
            ):
                use()


@pytest.mark.parametrize("name", ["h", "w"])
def test_a_state_of_another_dtype(bench: Bench, name: str) -> None:
    state = getattr(bench.model, name)
    with replaced(state, state.value.astype(jnp.float32)):
        for use in (lambda: bench.learner(bench.xs[0]), bench.grad):
            with pytest.raises(ValueError, match=rf"state {name} has dtype float32, .* float64"):
                use()


def test_a_parameter_of_another_shape(bench: Bench) -> None:
    with replaced(bench.model.w, jnp.zeros((IN, HIDDEN + 1))):
        for use in (lambda: bench.learner(bench.xs[0]), bench.grad):
            with pytest.raises(
                (ValueError, bt.CompilationError), match=r"\bw\b.*\(3, 5\).*\(3, 4\)"
            ):
                use()


@pytest.mark.parametrize("use", ["call", "evolve", "grad", "reset"])
def test_states_made_anew_for_another_batch(use: str) -> None:
    """Those of the same shape are followed: see ``test_restarts.py``."""
    case = zoo.case("leaky", 2, steps=2)
    learner = bt.D_RTRL(case.model)
    learner.compile_graph(case.xs[0])
    brainstate.nn.init_all_states(case.model, batch_size=3)
    before = case.model.h.value
    uses = {
        "call": lambda: learner(case.xs[0]),
        "evolve": lambda: learner.etrace_evolve(case.xs),
        "grad": lambda: learner.etrace_grad(case.xs, step_fn=lambda x: learner(x).sum()),
        "reset": lambda: learner.reset_state(batch_size=2, model_states=True),
    }
    with pytest.raises(
        bt.CompilationError,
        match=r"hidden state h was initialised again.*compile_graph again. To reset.* reset_state",
    ):
        uses[use]()
    assert case.model.h.value is before
    xs = jnp.concatenate([case.xs, case.xs[:, :1]], 1)
    learner.compile_graph(xs[0])
    assert learner(xs[0]).shape == (3, HIDDEN)


# --- what users override -----------------------------------------------------------------------

FORMER = ["_solve_weight_gradients", "_update_etrace_data", "_compute_learning_signal", "make_step"]


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("learner", [bt.D_RTRL, bt.pp_prop, bt.ETraceVjpAlgorithm, bt.DNI])
def test_a_hook_that_nothing_calls_is_refused(learner: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine defines {name}, which nothing calls: .*make_rule"):
        type("Mine", (learner,), {name: lambda self: None})


def test_a_hook_from_beside_is_refused_too() -> None:
    class Beside:
        def make_step(self, rule: Any) -> Any:
            return rule

    with pytest.raises(TypeError, match="make_step"):
        type("Mine", (Beside, bt.D_RTRL), {})


def test_steps_of_an_executor_are_not_overridden() -> None:
    with pytest.raises(TypeError, match="Mine defines signals, which nothing calls"):
        type("Mine", (bt.ETraceGraphExecutor,), {"signals": lambda self, perturb: ()})


def test_parts_of_a_rule_that_nothing_calls_are_refused() -> None:
    with pytest.raises(TypeError, match="Mine defines accumulated.*of_block"):
        type("Mine", (ParamDimRule,), {"accumulated": lambda self, block: None})


def test_methods_of_a_subclass_keep_their_names() -> None:
    class Mine(bt.D_RTRL):
        def run(self, xs: Any) -> Any:
            return self.etrace_evolve(xs, return_outputs=True)

        takes = stepper = "mine"

    learner = bt.compile(zoo.Leaky(), Mine, jnp.ones((2, IN)), batch_size=2)
    assert learner(jnp.ones((2, IN))).shape == (2, HIDDEN)
    assert learner.run(jnp.ones((3, 2, IN))).shape == (3, 2, HIDDEN)


def test_a_rule_takes_a_public_executor() -> None:
    model = zoo.Leaky()
    brainstate.nn.init_all_states(model, batch_size=2)
    executor = bt.ETraceGraphExecutor(model)
    executor.compile_graph(jnp.ones((2, IN)))
    rule = ParamDimRule(executor)
    assert rule.executor is executor.compiled
    with pytest.warns(DeprecationWarning, match="links of an executor is executor.compiled.links"):
        assert executor.links is rule.links


def test_whole_jacobians_are_those_of_the_coupled_scope() -> None:
    with pytest.raises(ValueError, match="jacobians='whole' needs recurrence_scope='coupled'"):
        bt.ETraceGraphExecutor(zoo.Leaky(), jacobians="whole", recurrence_scope="diagonal")
