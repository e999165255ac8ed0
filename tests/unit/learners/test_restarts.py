# SPDX-License-Identifier: Apache-2.0
"""Traces start anew with the states of a model that was reset without its learner."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import bptt
from tests import zoo

# every gradient below is of a new function
pytestmark = pytest.mark.filterwarnings(
    "ignore:step_fn .* is a new function:UserWarning",
    "ignore:states of the model were made anew 3 times:UserWarning",
)

BATCH, STEPS = 2, 4
EXACT, APPROXIMATE = True, False


class Summing(zoo.Leaky):
    """A readout that sums up, with a leak that is the same everywhere: credit is in filters."""

    def __init__(self) -> None:
        super().__init__()
        self.w = zoo.weight(zoo.HIDDEN, zoo.HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = 0.7 * self.h.value + bt.matmul(x, self.w.value)
        return self.h.value


def recurrent() -> Any:
    return bt.nn.ValinaRNNCell(zoo.IN, zoo.HIDDEN, activation="tanh", key=0)


def two_layers() -> Any:
    return zoo.Stack(zoo.Leaky(), Summing())


#: A model and a learner, and whether the gradient is that of BPTT.
RULES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], bool]] = {
    "d_rtrl": (zoo.Leaky, "d_rtrl", {"downstream": "step"}, EXACT),
    "rtrl": (recurrent, "rtrl", {}, EXACT),
    "windows": (zoo.Leaky, "d_rtrl", {"vjp_method": "multi-step"}, EXACT),
    "filters": (two_layers, "d_rtrl", {"downstream": "linear"}, EXACT),
    "pp_prop": (recurrent, "pp_prop", {"decay_or_rank": 0.9}, APPROXIMATE),
    "eprop": (recurrent, "eprop", {"kappa_filter_decay": 0.8}, APPROXIMATE),
    "uoro": (recurrent, "uoro", {}, APPROXIMATE),
}


def sequences() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return tuple(jnp.asarray(rng.normal(size=(STEPS, BATCH, zoo.IN))) for _ in range(2))


def loss(out: Any) -> Any:
    return jnp.mean((out - 1.0) ** 2)


def same(a: Any, b: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-13), a, b)


def reset(model: Any) -> None:
    brainstate.nn.reset_all_states(model, batch_size=BATCH)  # and return nothing


def initialise(model: Any) -> None:
    brainstate.nn.init_all_states(model, batch_size=BATCH)


def gradient_of(learner: Any, xs: Any) -> Any:
    """The gradient of the losses of a sequence."""
    if learner.vjp_method == "multi-step":

        def window(x: Any) -> Any:
            return jax.vmap(loss)(learner(bt.MultiStepData(x)))

        return learner.etrace_grad(xs, step_fn=window, reduction="sum", chunk_size=2)
    return learner.etrace_grad(xs, step_fn=lambda x: loss(learner(x)), reduction="sum")


def by_calls(learner: Any, xs: Any) -> Any:
    """The same by single calls."""
    total: Any = None
    for x in xs:
        grads = brainstate.transform.grad(lambda x=x: loss(learner(x)), learner.param_states)()
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return total


@pytest.mark.parametrize("rule", RULES)
def test_the_second_sequence_alone(rule: str) -> None:
    make, algorithm, options, exact = RULES[rule]
    brainstate.random.seed(0)
    model, (first, second) = make(), sequences()
    learner = bt.compile(model, algorithm, first[0], batch_size=BATCH, **options)
    want = gradient_of(copy.deepcopy(learner), second)  # from traces of zero
    if exact:
        same(want, bptt(model, (second,), loss)[1])
    gradient_of(learner, first)
    kept = learner.read_traces(), [one.value for one in learner.filters]
    assert any(leaf.any() for leaf in jax.tree.leaves(kept))

    reset(model)
    same(gradient_of(learner, second), want)

    @brainstate.transform.jit
    def inside(xs: Any) -> Any:
        reset(model)
        return gradient_of(learner, xs)

    for _ in range(2):  # traced, and as compiled
        same(inside(second), want)
    if learner.vjp_method != "multi-step":
        reset(model)
        same(by_calls(learner, second), want)
    initialise(model)  # makes the states anew
    same(gradient_of(learner, second), want)
    assert int(learner.running_index.value) == STEPS


class Held(zoo.Leaky):
    """Its state is made once, and initialised in place."""

    def __init__(self) -> None:
        super().__init__()
        self.h = brainstate.HiddenState(jnp.zeros((BATCH, zoo.HIDDEN)))

    def init_state(self, batch_size: int | None = None) -> None:
        self.h.value = self.start(batch_size)


class Anew(zoo.Leaky):
    """Its reset_state makes a new state, and a counter."""

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state(batch_size)
        self.count = brainstate.ShortTermState(jnp.zeros(()))

    def update(self, x: Any) -> Any:
        self.count.value = self.count.value + 1.0
        return super().update(x * self.count.value)

    reset_state = init_state


_LEAKY: list[Any] = []


@pytest.fixture
def leaky() -> Any:
    """A learner in the middle of a sequence, and the gradient of the next from its start."""
    if not _LEAKY:
        _LEAKY.append(_leaky())
    return _LEAKY[0]


def _leaky() -> Any:
    brainstate.random.seed(0)
    model, (first, second) = zoo.Leaky(), sequences()
    learner = bt.compile(model, "d_rtrl", first[0], batch_size=BATCH, downstream="step")

    def step(x: Any) -> Any:
        return loss(learner(x))

    def run(xs: Any = second) -> Any:
        return learner.etrace_grad(xs, step_fn=step, reduction="sum")

    return model, learner, run, bptt(model, (second,), loss)[1]


def by_module(model: Any) -> None:
    model.reset_state(BATCH)


class Outer(brainstate.nn.Module):
    """A module around the model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model


def around(model: Any) -> None:
    reset(Outer(Outer(model)))


def in_a_list(model: Any) -> None:
    reset([bt.nn.Linear(2, 2), model])


@pytest.mark.parametrize("how", [by_module, around, in_a_list, initialise])
def test_ways_to_reset(leaky: Any, how: Callable[[Any], None]) -> None:
    model, learner, run, want = leaky
    run()
    how(model)
    same(run(), want)
    how(model)
    learner.reset_state()  # both
    same(run(), want)


def test_a_compiled_reset_starts_traces_anew_each_time(leaky: Any) -> None:
    model, _, run, want = leaky
    jitted = brainstate.transform.jit(lambda: reset(model))
    for _ in range(3):
        run()
        jitted()
        same(run(), want)


def test_a_reset_in_a_branch(leaky: Any) -> None:
    model, learner, run, want = leaky

    @brainstate.transform.jit
    def perhaps(done: Any) -> None:
        brainstate.transform.cond(done, lambda: reset(model), lambda: None)

    reset(model)
    run()
    traces = learner.read_traces()
    perhaps(False)
    same(learner.read_traces(), traces)
    perhaps(True)
    same(run(), want)


def test_assignments_of_the_user_leave_the_traces(leaky: Any) -> None:
    """Of data, of zeros, of a saved state; and a step that assigns, called by reset_state."""
    model, learner, run, _ = leaky
    reset(model)
    run()
    traces, value = learner.read_traces(), model.h.value
    for assigned in (value, jnp.zeros_like(value), jax.lax.stop_gradient(value) * 0.5):
        model.h.value = assigned
    saved = {path: state.value for path, state in model.states(brainstate.HiddenState).items()}
    brainstate.nn.assign_state_values(model, saved)
    same(learner.read_traces(), traces)

    class Loading(brainstate.nn.Module):
        """A module that is none of the model, and loads data in a method of that name."""

        def reset_state(self) -> None:
            model.h.value = value

    Loading().reset_state()
    same(learner.read_traces(), traces)
    start = model.h.value
    first = run()
    model.h.value = start
    learner.write_traces(traces, 0)
    same(run(), first)


def test_a_reset_inside_of_a_step_is_part_of_it() -> None:
    class Blinking(zoo.Leaky):
        def update(self, x: Any) -> Any:
            out, end = super().update(x), jnp.sum(x) > 1e3
            brainstate.transform.cond(end, lambda: self.reset_state(BATCH), lambda: None)
            brainstate.transform.cond(end, lambda: reset(self), lambda: None)
            return out

    model, (xs, _) = Blinking(), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    learner.write_traces(jax.tree.map(jnp.ones_like, learner.read_traces()), 3)
    model(xs[0])
    bt.compile_etrace_graph(model, xs[0])
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(learner.read_traces()))


def test_a_reset_that_lets_the_learner_run(leaky: Any) -> None:
    """Warming up in a method reset_state: what steps assign is no reset."""
    model, learner, _, _ = leaky

    class Warm(Outer):
        def reset_state(self) -> None:
            reset(self.inner)
            learner.etrace_evolve(sequences()[0])
            learner(sequences()[0][0])

    brainstate.nn.call_all_fns(Warm(model), "reset_state", node_to_exclude=zoo.Leaky)
    assert int(learner.running_index.value) == STEPS + 1
    assert any(leaf.any() for leaf in jax.tree.leaves(learner.read_traces()))


def test_a_part_that_is_reset_is_said() -> None:
    model, (xs, _) = zoo.Stack(zoo.Leaky(), Summing()), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    learner(xs[0])
    traces = learner.read_traces()
    reset(model.layers[0])
    assert learner.read_traces() is not traces
    same(learner.read_traces(), traces)
    with pytest.warns(UserWarning, match=r"others were not: layers\[1\].h. The traces go on"):
        learner(xs[0])
    reset(model.layers[0])
    model.layers[1].reset_state(BATCH)  # and with it, all
    assert not any(leaf.any() for leaf in jax.tree.leaves(learner.read_traces()))
    reset(model.layers[0])
    learner.reset_state()
    learner(xs[0])
    model.layers[0].init_state(BATCH)
    with pytest.warns(UserWarning, match=r"made anew and others go on: layers\[1\].h. All traces"):
        assert learner.hidden_states["layers", 0, "h"] is model.layers[0].h
    assert not any(leaf.any() for leaf in jax.tree.leaves(learner.read_traces()))


class Kept(Summing):
    """A part that nothing resets."""

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.full((BATCH, zoo.HIDDEN), 0.1))

    reset_state = brainstate.nn.Module.reset_state


def test_a_part_that_a_reset_leaves_as_it_was_is_said(tmp_path: Any) -> None:
    model, (xs, _) = zoo.Stack(zoo.Leaky(), Kept()), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    learner(xs[0])
    reset(model)
    assert not any(leaf.any() for leaf in jax.tree.leaves(learner.read_traces()))
    with pytest.warns(UserWarning, match=r"left hidden states as they were: layers\[1\].h"):
        learner(xs[0])
    learner.save(tmp_path / "file")
    reset(model)
    learner.restore(tmp_path / "file")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner(xs[0])


def test_parts_that_are_made_anew_and_assigned_by_one_reset() -> None:
    model, (xs, _) = zoo.Stack(Anew(), Summing()), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    copied = copy.deepcopy(learner)
    for one in (learner, copied):
        one.model.layers[0].h.value = one.model.layers[0].h.value + 1.0
        one.write_traces(jax.tree.map(jnp.ones_like, one.read_traces()), 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reset(one.model)
            one.hidden_states  # noqa: B018  follows the states
            one(xs[0])
        assert int(one.running_index.value) == 1


def test_a_clone_of_the_model_is_another_model() -> None:
    """Its states have the hooks of those that they were made from."""
    model, (xs, _) = zoo.Leaky(), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH, downstream="step")
    learner(xs[0])
    traces, clone = learner.read_traces(), brainstate.graph.clone(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reset(clone)
        clone.h.value = jnp.zeros_like(clone.h.value)
        same(learner.read_traces(), traces)
        learner(xs[0])
        reset(model)
        reset(clone)
        learner(xs[0])
    assert int(learner.running_index.value) == 1


def test_a_copy_whose_states_are_made_anew_before_its_first_use(leaky: Any) -> None:
    model, learner, run, want = leaky
    reset(model)
    run()
    copied = copy.deepcopy(learner)
    initialise(copied.model)
    same(gradient_of(copied, sequences()[1]), want)


@pytest.mark.parametrize("make", [Held, Anew])
def test_states_initialised_in_place_and_reset_anew(make: type) -> None:
    brainstate.random.seed(0)
    model, (first, second) = make(), sequences()
    learner = bt.compile(model, "d_rtrl", first[0], batch_size=BATCH)
    want = bptt(model, (second,), loss)[1]
    for restart in (reset, initialise, lambda _: learner.reset_state(BATCH, model_states=True)):
        gradient_of(learner, first)
        restart(model)
        same(gradient_of(learner, second), want)
    assert learner.hidden_states["h",] is model.h
    learner.reset_state(batch_size=5, model_states=True)
    assert learner(jnp.ones((5, zoo.IN))).shape == (5, zoo.HIDDEN)


def test_other_states_are_followed_and_the_traces_go_on() -> None:
    model, (xs, _) = Anew(), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    learner(xs[0])
    traces = learner.read_traces()
    model.count = brainstate.ShortTermState(jnp.ones(()))
    assert learner.other_states["count",] is model.count
    same(learner.read_traces(), traces)
    learner(xs[0])
    assert float(model.count.value) == 2.0
    model.count = brainstate.ShortTermState(jnp.zeros(3))
    with pytest.raises(
        bt.CompilationError, match=r"other state count was .* has shape \(3,\), but"
    ):
        learner(xs[0])


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (brainstate.HiddenState(jnp.zeros((3, zoo.HIDDEN))), r"shape \(3, 4\), but .* \(2, 4\)"),
        (brainstate.HiddenState(jnp.zeros((BATCH, zoo.HIDDEN), "float32")), "dtype float32, but"),
        (brainstate.ShortTermState(jnp.zeros((BATCH, zoo.HIDDEN))), "the type ShortTermState in"),
        (None, "reset_state"),
    ],
)
def test_another_kind_of_state_is_refused(state: Any, says: str) -> None:
    model, (xs, _) = zoo.Leaky(), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    model.h = state
    text = f"hidden state h was initialised again.* compile_graph again.* reset_state.*{says}"
    for use in (lambda: learner(xs[0]), lambda: gradient_of(learner, xs), learner.reset_state):
        with pytest.raises(bt.CompilationError, match=text if state else "h was initialised again"):
            use()


def test_states_made_anew_again_and_again_are_said() -> None:
    model, (xs, _) = zoo.Leaky(), sequences()
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            initialise(model)
            learner(xs[0])
    initialise(model)
    with pytest.warns(UserWarning, match="made anew 3 times after compile_graph"):
        learner(xs[0])


def test_a_copy_has_traces_of_its_own(leaky: Any) -> None:
    model, learner, run, want = leaky
    reset(model)
    run()
    traces, copied = learner.read_traces(), copy.deepcopy(learner)
    reset(copied.model)
    same(learner.read_traces(), traces)
    same(gradient_of(copied, sequences()[1]), want)
    same(learner.read_traces(), traces)
    reset(model)
    assert any(leaf.any() for leaf in jax.tree.leaves(copied.read_traces()))
    same(run(), want)


def test_a_learner_that_is_gone_is_called_no_more() -> None:
    model, (xs, _) = zoo.Leaky(), sequences()
    for _ in range(3):
        learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
        bt.D_RTRL(model).compile_graph(xs[0])
    gc.collect()
    learner(xs[0])
    assert len(model.h.hooks.get_hooks("write_after")) == 1


def test_two_learners_of_a_model_and_a_saved_one(leaky: Any, tmp_path: Any) -> None:
    model, learner, run, want = leaky
    other = bt.D_RTRL(model)
    other.compile_graph(sequences()[0][0])
    reset(model)
    run()
    path, moved = tmp_path / "learner", learner.read_traces()
    learner.save(path)
    other.reset_state(BATCH, model_states=True)
    assert not any(leaf.any() for leaf in jax.tree.leaves(learner.read_traces()))
    learner.restore(path)
    same(learner.read_traces(), moved)
    initialise(model)
    learner.save(path)  # of the states that there are now
    learner.restore(path)
    reset(model)
    same(run(), want)


def test_a_model_that_is_mapped() -> None:
    brainstate.random.seed(0)
    model, (first, second) = zoo.Leaky(), sequences()
    learner = bt.compile(model, "d_rtrl", first[0], batch_size=BATCH, vmap=True)
    want = gradient_of(learner, second)
    other = bt.D_RTRL(model, vmap=True)
    other.compile_graph(first[0])
    other(first[0])
    learner.reset_state(model_states=True)
    assert not any(leaf.any() for leaf in jax.tree.leaves(other.read_traces()))
    same(gradient_of(learner, second), want)
    brainstate.nn.reset_all_states(model)  # the states of one example
    with pytest.raises(ValueError, match=r"the state h has shape"):
        learner(first[0])


def test_a_step_of_a_driver_makes_no_states(leaky: Any) -> None:
    model, learner, _, want = leaky

    def step(x: Any) -> Any:
        initialise(model)
        return loss(learner(x))

    with pytest.raises(bt.CompilationError, match="hidden state h was initialised again"):
        learner.etrace_grad(sequences()[1], step_fn=step)
    initialise(model)
    same(gradient_of(learner, sequences()[1]), want)


@pytest.mark.parametrize("rule", ["d_rtrl", "rtrl"])
def test_traces_that_are_zero_stay_where_none_is_kept(rule: str) -> None:
    model, name, options, _ = RULES[rule]
    xs, _ = sequences()
    made = brainstate.nn.init_all_states(model(), batch_size=BATCH)
    learner = bt.compile(made, name, xs[0], batch_size=BATCH, **options)

    def traces(**how: Any) -> Any:
        learner.etrace_grad(xs, step_fn=lambda x: loss(learner(x)), **how)
        return jax.tree.leaves(learner.read_traces())

    traces(carry_trace=False)
    zeros = jax.tree.leaves(learner.read_traces())
    assert all(a is b for a, b in zip(traces(carry_trace=False), zeros, strict=True))
    assert int(learner.running_index.value) == 2 * STEPS
    assert any(bool((a != b).any()) for a, b in zip(traces(), zeros, strict=True))
    after = brainstate.transform.jit(lambda: traces(carry_trace=False))()
    for a, b in zip(after, zeros, strict=True):
        np.testing.assert_array_equal(a, b)
