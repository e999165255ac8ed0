# SPDX-License-Identifier: Apache-2.0
"""Wrong use is refused with a text that names the argument, and leaves everything as it was."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import ParamDimRule
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.zoo import weight

# every case below is a new function at one place
pytestmark = pytest.mark.filterwarnings("ignore:step_fn .* is a new function:UserWarning")

IN, HIDDEN, BATCH, STEPS = zoo.IN, zoo.HIDDEN, 2, 3


class Mixed(zoo.Model):
    """Every kind of state: hidden, counted, random, parameters with and without a trace."""

    names = ("h", "v")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.out = weight(HIDDEN, 2)
        self.count = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self.noise = brainstate.random.RandomState(7)

    def update(self, x: Any) -> Any:
        self.count.value = self.count.value + 1
        kick = 0.1 * self.noise.uniform(size=(HIDDEN,))
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) + kick
        self.v.value = 0.5 * self.v.value + jnp.sin(self.h.value)
        return bt.matmul(self.v.value, self.out.value)


class Bench:
    """A compiled learner, moved on by a few steps, with its correct call."""

    def __init__(self) -> None:
        brainstate.random.seed(5)
        self.model = Mixed()
        self.learner: Any = None
        brainstate.nn.init_all_states(self.model, batch_size=BATCH)
        rng = np.random.default_rng(6)
        self.xs = jnp.asarray(rng.normal(size=(STEPS, BATCH, IN)))
        self.ys = jnp.asarray(rng.normal(size=(STEPS, BATCH, 2)))
        self.learner = bt.D_RTRL(self.model)
        self.learner.compile_graph(self.xs[0])
        self.learner.etrace_evolve(self.xs)
        self.start = self.states()
        self.reference = self.correct()
        self.restore()

    def objects(self) -> dict[Any, Any]:
        learner = self.learner
        traces = {("trace", i): state for i, state in enumerate(learner.traces)}
        index = {("running_index",): learner.running_index}
        return {**brainstate.graph.states(self.model), **traces, **index}

    def states(self) -> dict[Any, Any]:
        """The value of every state there is."""
        return {path: state.value for path, state in self.objects().items()}

    def restore(self) -> None:
        for path, state in self.objects().items():
            state.value = self.start[path]

    def loss(self, x: Any, y: Any) -> Any:
        return jnp.mean((self.learner(x) - y) ** 2)

    def correct(self) -> Any:
        """Gradients and losses of a correct call, and all states after it."""
        return self.learner.etrace_grad(
            self.xs, self.ys, step_fn=self.loss, return_value=True, block_size=2
        ), self.plain_states()

    def plain_states(self) -> dict[Any, Any]:
        return {"/".join(map(str, path)): value for path, value in self.states().items()}

    def grad(self, *sequences: Any, **options: Any) -> Any:
        options.setdefault("step_fn", self.loss)
        return self.learner.etrace_grad(*(sequences or (self.xs, self.ys)), **options)


_BENCH: list[Bench] = []


@contextmanager
def refused(bench: Bench, error: type[Exception], match: str) -> Iterator[None]:
    """The body raises, changes no state, and a correct call gives what it always gave."""
    before = bench.states()
    try:
        with pytest.raises(error, match=match):
            yield
        after = bench.states()
        assert before.keys() == after.keys()
        for path, value in after.items():
            for old, new in zip(jax.tree.leaves(before[path]), jax.tree.leaves(value), strict=True):
                assert not isinstance(new, jax.core.Tracer), path
                assert jnp.array_equal(old, new), path
        found = bench.correct()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(bench.reference), strict=True):
            assert jnp.array_equal(a, b)
        bench.restore()
    except BaseException:
        _BENCH.clear()  # the next test gets a new one
        raise


@pytest.fixture
def bench() -> Bench:
    if not _BENCH:
        _BENCH.append(Bench())
    return _BENCH[0]


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
        (Complex, r"state h has the complex dtype complex128; .*two states"),
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


@pytest.mark.parametrize("dtype", [int, "int32", jnp.bool_, "no such dtype", 3, object()])
def test_trace_dtype_is_a_floating_point_dtype(dtype: Any) -> None:
    model = Mixed()
    with pytest.raises((TypeError, ValueError), match="trace_dtype must be a floating-point dtype"):
        bt.D_RTRL(model, trace_dtype=dtype)


def test_a_learner_is_no_model(bench: Bench) -> None:
    with pytest.raises(TypeError, match="model is a learner already"):
        bt.D_RTRL(bench.learner)


def test_an_example_argument_that_is_no_array() -> None:
    with pytest.raises(TypeError, match=r"argument\[0\]\['mode'\] is a str"):
        bt.compile(Mixed(), "d_rtrl", {"mode": "fast"}, batch_size=BATCH)


def test_unknown_learner_options_are_named() -> None:
    with pytest.raises(TypeError, match="decay"):
        bt.compile(Mixed(), "d_rtrl", jnp.ones((BATCH, IN)), batch_size=BATCH, decay=0.9)


# --- one step ---------------------------------------------------------------------------------

COMPILED = r"compiled for shape \(2, 3\) and dtype float64"


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


def test_a_learner_takes_no_keywords(bench: Bench) -> None:
    with refused(bench, TypeError, "unexpected keyword argument 'x'"):
        bench.learner(x=bench.xs[0])


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
def test_states_made_anew_after_compiling(use: str) -> None:
    case = zoo.case("leaky", 2, steps=2)
    learner = bt.D_RTRL(case.model)
    learner.compile_graph(case.xs[0])
    brainstate.nn.init_all_states(case.model, batch_size=2)
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
    learner.compile_graph(case.xs[0])
    assert learner(case.xs[0]).shape == (2, HIDDEN)


def test_reset_without_the_batch_axis(bench: Bench) -> None:
    says = r"batch_size=None resets [hv] to shape \(4,\).*compiled for \(2, 4\).*compile again"
    with refused(bench, ValueError, says):
        bench.learner.reset_state(model_states=True)


@pytest.mark.parametrize("weight", [("nothing",), ("out",), "w", 3, ("h",)])
def test_get_etrace_of_something_without_a_trace(bench: Bench, weight: Any) -> None:
    with refused(bench, KeyError, r"has no trace; parameters with one are \['w'\]"):
        bench.learner.get_etrace_of(weight)


def test_get_etrace_of_a_state_without_a_trace(bench: Bench) -> None:
    with refused(bench, KeyError, r"out.* has no trace; parameters with one are \['w'\]"):
        bench.learner.get_etrace_of(bench.model.out)


# --- sequences --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequences", "says"),
    [
        (lambda b: (b.xs, b.ys[:2]), r"one length T; got .*3.*2"),
        (lambda b: (b.xs[:0], b.ys[:0]), r"length zero"),
        (
            lambda b: (b.xs, 1.0),
            r"sequences\[1\] is a (scalar|float); expected an array \[T, ...\]",
        ),
        (lambda b: (b.xs, {"a": b.ys, "b": jnp.ones(())}), r"sequences\[1\]\['b'\] is a scalar"),
        (lambda b: (None, {}), r"at least one sequence is needed"),
        (lambda b: (b.xs[:, :1], b.ys), rf"argument\[0\] has shape \(1, 3\).*{COMPILED}"),
        (lambda b: (b.xs[0], b.ys[0]), rf"argument\[0\] has shape \(3,\).*{COMPILED}"),
        (lambda b: (b.xs.astype(jnp.float32), b.ys), rf"dtype float32.*{COMPILED}"),
    ],
)
def test_bad_sequences(bench: Bench, sequences: Callable[..., Any], says: str) -> None:
    with refused(bench, (ValueError, TypeError), says):
        bench.grad(*sequences(bench))
    with refused(bench, (ValueError, TypeError), says):
        bench.learner.etrace_evolve(*sequences(bench), step_fn=bench.loss)


def test_no_sequence_at_all(bench: Bench) -> None:
    with refused(bench, ValueError, "at least one sequence is needed"):
        bench.learner.etrace_grad(step_fn=bench.loss)
    with refused(bench, ValueError, "at least one sequence is needed"):
        bench.learner.etrace_evolve()


@pytest.mark.parametrize("sequence", ["text", object()])
def test_a_sequence_that_is_no_array(bench: Bench, sequence: Any) -> None:
    with refused(bench, (TypeError, ValueError), r"sequences\[1\]"):
        bench.grad(bench.xs, sequence)


@pytest.mark.parametrize("size", [0, -1, True, False, 1.5, "x", None, "", (1,)])
def test_bad_block_sizes(bench: Bench, size: Any) -> None:
    says = f"block_size must be 'auto' or a positive integer, got {re.escape(repr(size))}"
    with refused(bench, (ValueError, TypeError), says):
        bench.grad(block_size=size)


def test_an_integer_of_numpy_is_a_block_size(bench: Bench) -> None:
    (reference, _), _ = bench.reference
    assert_tree_close(bench.grad(block_size=np.int64(2)), reference, 1e-12)
    bench.restore()


@pytest.mark.parametrize("reduction", ["none", "Mean", None, 1, ["mean"]])
def test_bad_reductions(bench: Bench, reduction: Any) -> None:
    says = f"reduction must be 'mean' or 'sum', got {re.escape(repr(reduction))}"
    with refused(bench, (ValueError, TypeError), says):
        bench.grad(reduction=reduction)


def test_unknown_options_of_the_drivers(bench: Bench) -> None:
    with refused(bench, TypeError, "blocksize"):
        bench.grad(blocksize=3)
    with refused(bench, TypeError, "outputs"):
        bench.learner.etrace_evolve(bench.xs, outputs=True)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"a": 3}, r"weights\['a'\].*(ParamState|State)"),
        ([1], r"weights must be"),
        (3, r"weights must be"),
    ],
)
def test_bad_weights(bench: Bench, weights: Any, says: str) -> None:
    with refused(bench, (TypeError, ValueError), says):
        bench.grad(weights=weights)


def test_step_fn_is_required_and_callable(bench: Bench) -> None:
    with refused(bench, TypeError, "step_fn"):
        bench.learner.etrace_grad(bench.xs, bench.ys)
    with refused(bench, TypeError, "step_fn must be callable|step_fn must be a function"):
        bench.grad(step_fn=3)
    with refused(bench, TypeError, "step_fn must be callable|step_fn must be a function"):
        bench.learner.etrace_evolve(bench.xs, step_fn=3)


def _broken(bench: Bench, x: Any, y: Any) -> Any:
    bench.learner(x)
    bench.model.h.value = bench.model.h.value + 1.0
    bench.model.count.value = bench.model.count.value + 1
    raise KeyError("in the middle of step_fn")


STEP_FNS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "no call": (lambda b, x, y: jnp.sum(x * x), ValueError, "exactly once per step.* 0 times"),
    "a call in jit": (
        lambda b, x, y: brainstate.transform.jit(lambda x: b.loss(x, y))(x),
        ValueError,
        "directly, not inside a transformation",
    ),
    "a call in a loop": (
        lambda b, x, y: brainstate.transform.for_loop(lambda k: b.loss(x, y), jnp.arange(1)).sum(),
        ValueError,
        "directly, not inside a transformation",
    ),
    "two calls": (
        lambda b, x, y: b.loss(x, y) + b.loss(x, y),
        ValueError,
        "exactly once.* 2 times",
    ),
    "the model": (lambda b, x, y: b.model(x).sum(), ValueError, "exactly once per step.* 0 times"),
    "a vector": (lambda b, x, y: b.learner(x)[:, 0], TypeError, r"scalar .*shape \(2,\).*mean\(\)"),
    "shape (1,)": (lambda b, x, y: b.loss(x, y)[None], TypeError, r"scalar .*shape \(1,\)"),
    "an int": (lambda b, x, y: b.loss(x, y).astype(int), TypeError, "scalar.*dtype int64"),
    "a bool": (lambda b, x, y: b.loss(x, y) > 0, TypeError, "scalar.*dtype bool"),
    "complex": (lambda b, x, y: b.loss(x, y) + 0j, TypeError, "scalar.*dtype complex128"),
    "a tuple": (lambda b, x, y: (b.loss(x, y), x), TypeError, "scalar loss.*has_aux"),
    "a dict": (lambda b, x, y: {"loss": b.loss(x, y)}, TypeError, "scalar loss"),
    "nothing": (lambda b, x, y: (b.loss(x, y), None)[1], TypeError, "scalar loss.*None"),
    "text": (lambda b, x, y: (b.loss(x, y), "loss")[1], TypeError, "step_fn must return a scalar"),
    "an error": (_broken, KeyError, "in the middle of step_fn"),
    "other shape": (lambda b, x, y: b.loss(x[:1], y), ValueError, COMPILED),
    "too many arguments": (lambda b, x: b.loss(x, x), TypeError, "argument"),
}


@pytest.mark.parametrize("name", STEP_FNS)
def test_bad_step_fns(bench: Bench, name: str) -> None:
    function, error, says = STEP_FNS[name]
    with refused(bench, error, f"(?s){says}"):
        bench.grad(step_fn=lambda *args: function(bench, *args))


@pytest.mark.parametrize(
    "result",
    [lambda v: v, lambda v: (v,), lambda v: (v, v, v), lambda v: [v, v], lambda v: {"a": v}],
)
def test_has_aux_needs_a_pair(bench: Bench, result: Callable[..., Any]) -> None:
    with refused(bench, TypeError, r"has_aux=True, step_fn must return a pair \(loss, aux\)"):
        bench.grad(step_fn=lambda x, y: result(bench.loss(x, y)), has_aux=True)


def test_step_fn_may_not_change_a_state(bench: Bench) -> None:
    """A state that shrinks in a step cannot be carried over a sequence."""
    counts = brainstate.ShortTermState(jnp.zeros((2, 4)), name="counts")

    def step_fn(x: Any, y: Any) -> Any:
        counts.value = counts.value[:, :2]
        return bench.loss(x, y)

    with refused(bench, ValueError, r"the state counts with shape \(2, 2\).*was \(2, 4\)"):
        bench.grad(step_fn=step_fn)


def test_a_failing_step_of_evolve(bench: Bench) -> None:
    with refused(bench, KeyError, "in the middle of step_fn"):
        bench.learner.etrace_evolve(bench.xs, bench.ys, step_fn=lambda x, y: _broken(bench, x, y))


def test_an_error_under_jit_leaves_no_tracers(bench: Bench) -> None:
    """The whole update is compiled by the user, and fails."""

    @brainstate.transform.jit
    def update() -> Any:
        bench.grad()
        raise KeyError("in the middle of an update")

    with refused(bench, KeyError, "in the middle of an update"):
        update()


def test_an_error_in_a_loss_under_grad_leaves_no_tracers(bench: Bench) -> None:
    def loss() -> Any:
        bench.learner(bench.xs[0])
        raise KeyError("in the middle of a loss")

    with refused(bench, KeyError, "in the middle of a loss"):
        brainstate.transform.grad(loss, bench.learner.param_states)()


def test_an_unknown_option_is_named_at_once() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'frozn'; options .*'frozen'"):
        bt.D_RTRL(zoo.Leaky(), frozn=())


def test_options_of_every_base_are_listed() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'trace_dtyp'; .*D_RTRL.*'trace_dtype'"):
        bt.compile(zoo.Leaky(), "d_rtrl", trace_dtyp="float32")
    with pytest.raises(TypeError, match=r"unknown option 'decay_or_rank'; options of D_RTRL are"):
        bt.compile(zoo.Leaky(), "d_rtrl", decay_or_rank=0.5)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"pp_prop needs the option 'decay_or_rank'"):
        bt.compile(zoo.Leaky(), "pp_prop", jnp.ones((2, zoo.IN)), batch_size=2)


class Kept(zoo.Leaky):
    """Its state is made and never reset."""

    reset_state = brainstate.nn.Module.reset_state


def test_a_state_that_is_not_reset_is_a_warning() -> None:
    inner = Kept()
    learner = bt.compile(
        brainstate.nn.Sequential(inner), "d_rtrl", jnp.ones((2, zoo.IN)), batch_size=2
    )
    learner.reset_state(2)  # the traces alone
    with pytest.warns(UserWarning, match=r"leaves the hidden state .*h as it is, because Kept has"):
        learner.reset_state(2, model_states=True)


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


def test_a_report_is_text_to_others() -> None:
    report = bt.compile(zoo.Leaky(), "d_rtrl", jnp.ones((2, IN)), batch_size=2).report
    assert pickle.loads(pickle.dumps(report)) == str(report) == report()
