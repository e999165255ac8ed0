# SPDX-License-Identifier: Apache-2.0
"""Online gradients against an oracle that shares no code with them, and against reverse mode."""

from __future__ import annotations

import copy
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle, truncated_bptt
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

ONE = ["leaky", "learned-leak", "gru-2", "lstm-1", "group-state"]
BATCHES = [(name, batch) for name in zoo.ALL for batch in (None, 3)] + [(name, 1) for name in ONE]


def compiled(case: zoo.Case, **options: Any) -> Any:
    learner = bt.D_RTRL(case.model, **options)
    learner.compile_graph(case.xs[0])
    return learner


def sequence(case: zoo.Case, learner: Any, **options: Any) -> Any:
    return learner.etrace_grad(
        case.xs,
        case.ys,
        step_fn=lambda x, y: case.loss(learner(x), y),
        reduction="sum",
        return_value=True,
        **options,
    )


def trace_values(learner: Any) -> Any:
    return [state.value for state in (*learner.traces, *learner.filters)]


@pytest.mark.parametrize(("name", "batch"), BATCHES)
def test_equals_the_oracle(name: str, batch: int | None) -> None:
    case = zoo.case(name, batch)
    oracle = d_rtrl_oracle(case.model, (case.xs, case.ys), case.loss)
    grads, losses = sequence(case, compiled(case, downstream="step"))
    assert_tree_close(losses, oracle.loss)
    assert_tree_close(grads, oracle.grads)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("name", [*zoo.POSITION_WISE, "partial-path", "residual"])
def test_position_wise_recurrence_equals_bptt(name: str, batch: int | None) -> None:
    case = zoo.case(name, batch)
    losses, reference = bptt(case.model, (case.xs, case.ys), case.loss)
    grads, online = sequence(case, compiled(case))
    assert_tree_close(online, losses)
    assert_tree_close(grads, reference)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("name", zoo.ALL)
def test_one_step_equals_reverse_mode(name: str, batch: int | None) -> None:
    case = zoo.case(name, batch, steps=1)
    zoo.stir(case)
    _, reference = bptt(case.model, (case.xs, case.ys), case.loss)
    grads, _ = sequence(case, compiled(case))
    unread = {"reads-only-old-state": [("w",)], "delayed": []}
    assert_tree_close(grads, reference, allow_zero=unread.get(name, ()))


@pytest.mark.parametrize("name", zoo.ALL)
def test_the_same_numbers_however_the_steps_are_cut(name: str) -> None:
    """In blocks, in calls with a trace carried between them, by gradients of steps and of a loop.

    One learner, as compiling takes most of the time.
    """
    case = zoo.case(name, 2)
    learner = compiled(case)
    whole, _ = found = sequence(case, learner)
    traces = trace_values(learner)

    def again() -> None:
        case.reset()
        learner.reset_state()

    def same_traces() -> None:
        assert_tree_close(trace_values(learner), traces, 1e-12, scale=1.0, allow_zero=("",))

    for block in (1, 3):
        again()
        assert_tree_close(sequence(case, learner, block_size=block), found, 1e-12)
        same_traces()

    again()
    total: Any = None
    for cut in (slice(0, 2), slice(2, 3), slice(3, None)):
        part = zoo.Case(case.model, case.xs[cut], case.ys[cut], 2)
        grads, _ = sequence(part, learner, block_size=2)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert_tree_close(total, whole, 1e-12)
    same_traces()

    @brainstate.transform.jit
    def of_step(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: case.loss(learner(x), y), learner.param_states)()

    again()
    total = None
    for x, y in zip(case.xs, case.ys, strict=True):
        grads = of_step(x, y)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert_tree_close(total, whole, 1e-12)
    same_traces()

    @brainstate.transform.jit
    def of_loop() -> Any:
        def loss() -> Any:
            return brainstate.transform.for_loop(
                lambda x, y: case.loss(learner(x), y), case.xs, case.ys
            ).sum()

        return brainstate.transform.grad(loss, learner.param_states)()

    again()
    assert_tree_close(of_loop(), whole, 1e-12)


@pytest.mark.parametrize("name", ["leaky", "gru-2"])
def test_a_block_is_as_long_as_the_sequence_at_most(name: str) -> None:
    """By default these are one block."""
    case = zoo.case(name, 2)
    learner = compiled(case)
    found = sequence(case, learner), trace_values(learner)
    for block in (zoo.STEPS, zoo.STEPS + 5):
        case.reset()
        learner.reset_state()
        same = sequence(case, learner, block_size=block), trace_values(learner)
        assert_tree_close(same, found, 1e-12, scale=1.0, allow_zero=("",))


@pytest.mark.parametrize("name", zoo.ALL)
def test_a_batch_is_the_sum_of_its_examples(name: str) -> None:
    if name == "noisy":
        pytest.skip("its examples share a state, the mean over the batch")
    case = zoo.case(name, 3)
    learner = compiled(case)
    whole, _ = sequence(case, learner)
    total = None
    single = zoo.case(name, 1)
    for path, state in brainstate.graph.states(single.model).items():
        if isinstance(state, brainstate.ParamState):
            state.value = brainstate.graph.states(case.model)[path].value
    learner = compiled(single)
    ys_axis = 2 if name == "transposed" else 1
    for b in range(3):
        single.reset()
        learner.reset_state()
        ys = jnp.take(case.ys, jnp.array([b]), axis=ys_axis)
        grads, _ = sequence(zoo.Case(single.model, case.xs[:, b : b + 1], ys, 1), learner)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert_tree_close(total, whole)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_vanilla_rnn_is_truncated_to_one_step(batch: int | None) -> None:
    case = zoo.case("vanilla-1", batch)
    _, reference = truncated_bptt(case.model, (case.xs, case.ys), case.loss, 1)
    with pytest.warns(UserWarning, match="D is structurally zero for group 0"):
        learner = compiled(case)
    grads, _ = sequence(case, learner)
    assert_tree_close(grads, reference)
    (record,) = learner.graph.explain(kind=bt.DiagnosticKind.TRANSITION_STRUCTURALLY_ZERO)
    assert record.hidden_paths == (("layers", 0, "h"),)


def test_permuted_hidden_units_permute_the_gradient() -> None:
    case, order = zoo.case("two-states", 2), jnp.array([2, 0, 3, 1])
    grads, _ = sequence(case, compiled(case))
    other = zoo.case("two-states", 2)
    other.model.w.value = case.model.w.value[:, order]
    other.model.b.value = case.model.b.value[order]
    other.ys = case.ys[..., order]
    moved, _ = sequence(other, compiled(other))
    assert_tree_close(moved[("w",)], grads[("w",)][:, order], 1e-12)
    assert_tree_close(moved[("b",)], grads[("b",)][order], 1e-12)


@pytest.mark.parametrize("name", ["gru-2", "lif", "reads-old-state"])
def test_evolving_moves_states_and_traces_like_a_gradient(name: str) -> None:
    case = zoo.case(name, 2)
    learner = compiled(case)
    sequence(case, learner)
    moved = trace_values(learner), {p: s.value for p, s in learner.hidden_states.items()}
    case.reset()
    learner.reset_state()
    out = learner.etrace_evolve(case.xs, return_outputs=True)
    assert out.shape == case.ys.shape
    assert int(learner.running_index.value) == zoo.STEPS
    now = trace_values(learner), {p: s.value for p, s in learner.hidden_states.items()}
    assert_tree_close(now, moved, 1e-12, scale=1.0, allow_zero=("",))


def test_the_zoo_is_alive() -> None:
    """Spikes occur and do not always occur, so the tests above are not vacuous."""
    for name in ("bypass", "lif"):
        case = zoo.case(name, 3)
        out = bt.D_RTRL(case.model)
        out.compile_graph(case.xs[0])
        spikes = out.etrace_evolve(case.xs, return_outputs=True)
        rate = float((spikes > 0.5).mean())
        assert 0.05 < rate < 0.95, (name, rate)


def test_an_old_state_read_by_step_fn_is_credited() -> None:
    """The loss may read a state before the learner moves it on, and after."""
    case = zoo.case("leaky", 2)
    learner = compiled(case)

    def loss(x: Any, y: Any) -> Any:
        old = case.model.h.value
        out = learner(x)
        return jnp.sum(jnp.sin(old) * y + out * case.model.h.value)

    grads = learner.etrace_grad(case.xs, case.ys, step_fn=loss, reduction="sum", block_size=3)
    case.reset()

    class Wrapped(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = case.model

        def update(self, x: Any) -> Any:
            old = self.inner.h.value
            return old, self.inner(x), self.inner.h.value

    _, reference = bptt(
        Wrapped(), (case.xs, case.ys), lambda o, y: jnp.sum(jnp.sin(o[0]) * y + o[1] * o[2])
    )
    assert_tree_close(grads[("w",)], reference[("inner", "w")])


def test_the_gradient_of_an_argument_is_that_of_the_current_step() -> None:
    """What lies in front of the learner (an encoder) is trained by ordinary derivatives."""
    case = zoo.case("lstm-2", 2)
    learner = compiled(case)
    learner.etrace_evolve(case.xs[:3])
    states = {p: s.value for p, s in learner.hidden_states.items()}
    gain = brainstate.ParamState(jnp.ones(zoo.IN))
    y = jnp.ones((2, zoo.OUT))
    found = brainstate.transform.grad(
        lambda: case.loss(learner(case.xs[3] * gain.value), y), gain
    )()
    for path, state in learner.hidden_states.items():
        state.value = states[path]
    reference = brainstate.transform.grad(
        lambda: case.loss(case.model(case.xs[3] * gain.value), y), gain
    )()
    assert_tree_close(found, reference)


def test_a_state_that_took_up_an_old_value_is_credited() -> None:
    """The loss reads a non-hidden state, which read the old hidden value in the same step."""

    class Late(zoo.Leaky):
        def __init__(self) -> None:
            super().__init__()
            self.seen = brainstate.ShortTermState(jnp.zeros((2, zoo.HIDDEN)))

        def update(self, x: Any) -> Any:
            self.seen.value = jnp.sin(self.h.value)
            return super().update(x)

    model = Late()
    brainstate.nn.init_all_states(model, batch_size=2)
    case = zoo.case("leaky", 2, steps=4)
    learner = bt.D_RTRL(model)
    learner.compile_graph(case.xs[0])

    def loss(x: Any) -> Any:
        learner(x)
        return jnp.sum(model.seen.value**2)

    reference = learner.etrace_grad(case.xs, step_fn=loss, reduction="sum")
    brainstate.nn.reset_all_states(model, batch_size=2)
    learner.reset_state()
    total: Any = None
    for x in case.xs:
        grads = brainstate.transform.grad(lambda x=x: loss(x), learner.param_states)()
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    assert_tree_close(total, reference, 1e-12)


def test_the_result_of_a_sequence_gradient_cannot_be_differentiated() -> None:
    case = zoo.case("leaky", 2, steps=2)
    learner = compiled(case)

    def loss() -> Any:
        _, losses = sequence(case, learner)
        return losses.sum()

    with pytest.raises(bt.NotSupportedError, match="cannot be differentiated"):
        brainstate.transform.grad(loss, learner.param_states)()


@pytest.mark.parametrize("of", ["parameters", "argument"])
def test_an_online_gradient_cannot_be_differentiated_again(of: str) -> None:
    """Traced operands are cut out of the step: a second derivative would be zero, silently."""
    case = zoo.case("leaky", 2, steps=1)
    learner = compiled(case)

    def size(x: Any) -> Any:
        grads = brainstate.transform.grad(
            lambda: jnp.sum(learner(x) ** 2), grad_states=learner.param_states
        )()
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))

    again = (
        brainstate.transform.grad(size, learner.param_states)
        if of == "parameters"
        else brainstate.transform.grad(size, argnums=0)
    )
    with pytest.raises(bt.NotSupportedError, match="cannot be differentiated again"):
        again(case.xs[0])


class OneNumber(zoo.Model):
    """A hidden state without axes, driven by all of ``y``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def start(self, batch_size: int | None) -> Any:
        return jnp.asarray(0.1)

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + jnp.tanh(bt.matmul(x, self.w.value)).mean()
        return jnp.tanh(self.h.value)


class NoInput(zoo.Model):
    """Operations without inputs and without outputs, beside an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.none, self.nothing = weight(IN, HIDDEN), weight(0, HIDDEN), weight(IN, 0)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value) + bt.matmul(x[..., :0], self.none.value)
        y = jnp.concatenate([y, bt.matmul(x, self.nothing.value)], axis=-1)
        self.h.value = 0.8 * self.h.value + y
        return jnp.tanh(self.h.value)


@pytest.mark.parametrize("build", [OneNumber, NoInput])
def test_empty_operations_and_states_without_axes(build: Any) -> None:
    model = build()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = bt.D_RTRL(model)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(zoo.STEPS, 2, IN)))
    learner.compile_graph(xs[0])
    reference = d_rtrl_oracle(model, (xs,), lambda out: jnp.sum(out**2)).grads
    grads = learner.etrace_grad(
        xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum", block_size=3
    )
    assert grads.keys() == reference.keys()
    assert float(jnp.abs(grads["w",]).max()) > 1e-2
    for path, grad in grads.items():
        assert grad.shape == reference[path].shape
        np.testing.assert_allclose(grad, reference[path], atol=1e-12)


@pytest.mark.parametrize("block_size", [1, "auto"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_over_many_steps_are_not_kept_in_half_precision(dtype: str, block_size: Any) -> None:
    """Where each step adds as much, a sum of half precision stops at a few hundred of them."""

    class Half(zoo.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = brainstate.ParamState(jnp.full((IN, HIDDEN), 0.1, dtype))
            self.out = brainstate.ParamState(jnp.full((HIDDEN, 1), 0.1, dtype))

        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((2, HIDDEN), dtype)

        def update(self, x: Any) -> Any:
            half = jnp.asarray(0.5, dtype)
            self.h.value = half * self.h.value + bt.matmul(x, self.w.value)
            return bt.matmul(self.h.value, self.out.value).astype("float32")

    xs = jnp.ones((5000, 2, IN), dtype)
    learner = bt.compile(Half(), "d_rtrl", xs[0], batch_size=2)
    grads = learner.etrace_grad(
        xs, step_fn=lambda x: learner(x).mean(), block_size=block_size, reduction="mean"
    )
    assert all(grad.dtype == dtype for grad in grads.values())
    np.testing.assert_allclose(jnp.asarray(grads["w",], "float32"), 0.2, rtol=0.02)
    np.testing.assert_allclose(jnp.asarray(grads["out",], "float32"), 0.6, rtol=0.02)


def test_a_parameter_with_a_leaf_of_integers() -> None:
    class Signed(zoo.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = brainstate.ParamState({"size": weight(IN, HIDDEN).value, "n": jnp.arange(4)})

        def update(self, x: Any) -> Any:
            p = self.w.value
            self.h.value = 0.8 * self.h.value + bt.matmul(x, p["size"]) * p["n"]
            return self.h.value

    model = Signed()
    learner = bt.compile(model, "d_rtrl", jnp.ones((2, IN)), batch_size=2)
    xs = jnp.ones((3, 2, IN))
    (grad,) = learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum()).values()
    assert grad["n"].dtype == model.w.value["n"].dtype
    assert not grad["n"].any()
    assert float(jnp.abs(grad["size"]).max()) > 1.0


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("PARAMETER_OUTSIDE_OPERATION", zoo.PlainParameters),
        ("CREDIT_THROUGH_OTHER_STATE", zoo.Noisy),
        ("CROSS_GROUP_DEPENDENCE", zoo.Residual),
        ("TRANSITION_STRUCTURALLY_ZERO", zoo.Direct),
    ],
)
def test_lost_credit_is_a_warning(kind: str, build: Any) -> None:
    model = build()
    brainstate.nn.init_all_states(model, batch_size=2)
    with pytest.warns(UserWarning, match=getattr(bt.DiagnosticKind, kind).value):
        bt.compile_etrace_graph(model, jnp.ones((2, zoo.IN)))


class Reads(zoo.Leaky):
    """A step that reads settings of ``brainstate.environ``, one of them with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = brainstate.nn.Dropout(0.5)

    def update(self, x: Any) -> Any:
        return super().update(self.drop(x)) * brainstate.environ.get("gain", 2.0)


def test_another_environment_is_refused() -> None:
    """Dropout in training mode would otherwise stay on, and a gain be what it was."""
    model = Reads()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner, x = bt.D_RTRL(model), jnp.ones((2, zoo.IN))
    with brainstate.environ.context(fit=True):
        learner.compile_graph(x)
        with (
            brainstate.environ.context(gain=3.0),
            pytest.raises(bt.CompilationError, match="reads 'gain' .* was not set .* is 3.0 now"),
        ):
            learner(x)
        with brainstate.environ.context(unread=3.0, t=0.1, i=1):
            learner(x)
    with (
        brainstate.environ.context(fit=False),
        pytest.raises(bt.CompilationError, match="reads 'fit' .* was True .* is False now"),
    ):
        learner(x)


def test_a_copy_is_not_compiled_under_a_setting_that_was_not_there() -> None:
    model = Reads()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner, x = bt.D_RTRL(model), jnp.ones((2, zoo.IN))
    with brainstate.environ.context(fit=True):
        learner.compile_graph(x)
        twin = copy.deepcopy(learner)
        with (
            brainstate.environ.context(gain=3.0),
            pytest.raises(bt.CompilationError, match="reads 'gain' .* was not set .* is 3.0 now"),
        ):
            twin(x)
        twin(x)


def test_a_time_that_the_step_does_not_read_need_not_be_there() -> None:
    case = zoo.case("leaky", 2, steps=1)
    with brainstate.environ.context(t=0.0, i=0):
        learner = compiled(case)
    assert learner.graph.module_info.environment == ()
    learner(case.xs[0])


@pytest.mark.parametrize(
    ("weights", "states", "inputs"),
    [
        ("float32", "float64", "float32"),
        ("float64", "float32", "float64"),
        ("float32", "float32", "bfloat16"),
    ],
)
def test_mixed_dtypes(weights: str, states: str, inputs: str) -> None:
    """Weights, states of one group and inputs may differ in dtype; gradients are the weights'."""

    class Mixed(zoo.Model):
        names = ("h", "v")

        def __init__(self) -> None:
            super().__init__()
            self.w = brainstate.ParamState(zoo.weight(zoo.IN, zoo.HIDDEN).value.astype(weights))

        def start(self, batch_size: int | None) -> Any:
            return super().start(batch_size).astype(states)

        def update(self, x: Any) -> Any:
            h = 0.8 * self.h.value + 0.1 * self.v.value + bt.matmul(x, self.w.value)
            self.h.value = h.astype(states)
            self.v.value = (0.5 * self.v.value + h).astype(states)
            return self.h.value * self.v.value

    model = Mixed()
    brainstate.nn.init_all_states(model, batch_size=2)
    xs = zoo.case("leaky", 2, steps=5).xs.astype(inputs)
    learner = bt.D_RTRL(model)
    learner.compile_graph(xs[0])
    found = []
    for block in (1, 2, 5):
        brainstate.nn.reset_all_states(model, batch_size=2)
        learner.reset_state()
        grads = learner.etrace_grad(
            xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), block_size=block
        )
        found.append(grads)
        assert grads[("w",)].dtype == weights
    for other in found[1:]:
        assert_tree_close(other, found[0], 1e-5)


class HeldFactor(zoo.Model):
    """Leaky integrators driven by operations of which one operand is held constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.bias = weight(IN, HIDDEN), weight(HIDDEN)
        self.B, self.A = weight(IN, 2), weight(2, HIDDEN)

    def update(self, x: Any) -> Any:
        held = jax.lax.stop_gradient
        drive = bt.matmul(x, held(self.fixed.value), self.bias.value)
        drive = drive + bt.lora_matmul(x, self.B.value, held(self.A.value))
        self.h.value = 0.8 * self.h.value + jnp.tanh(drive)
        return self.h.value


@pytest.mark.parametrize("block_size", [1, 3])
def test_what_is_held_has_no_trace_and_the_rest_keeps_its_own(block_size: int) -> None:
    model = HeldFactor()
    brainstate.nn.init_all_states(model, batch_size=2)
    xs = jnp.linspace(-1.0, 1.0, 4 * 2 * IN).reshape(4, 2, IN)
    trained = {key: getattr(model, key) for key in ("bias", "B")}
    _, reference = bptt(model, (xs,), lambda out: (out**2).sum())
    learner = bt.D_RTRL(model, frozen=["fixed", "A"])
    learner.compile_graph(xs[0])
    grads = learner.etrace_grad(
        xs,
        step_fn=lambda x: (learner(x) ** 2).sum(),
        reduction="sum",
        weights=trained,
        block_size=block_size,
    )
    assert_tree_close(grads, {key: reference[key,] for key in trained})
    assert [*learner.get_etrace_of(("B",))[0]] == ["lora_b"]
