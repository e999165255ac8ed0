# SPDX-License-Identifier: Apache-2.0
"""Every learning rule against an oracle that shares no code with it, in steps and in windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

import braintrace as bt
from braintrace import algorithms
from braintrace.algorithms import Block
from braintrace.testing import (
    assert_tree_close,
    bptt,
    dni_reference,
    e_prop_oracle,
    three_factor_oracle,
    truncated_bptt,
    window_oracle,
)
from tests import zoo
from tests.truth.table import RULES
from tests.zoo import weight

IN, HIDDEN, OUT, STEPS = 2, 3, 2, 5

# --- models: all recurrent, so that scopes and positions matter -------------------------------


class Model(zoo.Model):
    width = HIDDEN

    def joined(self, x: Any) -> Any:
        return jnp.concatenate([x, self.h.value], -1)


class Dense(Model):
    """A recurrent product beside a leak; the output reads the old state."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = weight(IN + HIDDEN, HIDDEN), weight(HIDDEN)

    def update(self, x: Any) -> Any:
        old = self.h.value
        drive = jnp.tanh(bt.matmul(self.joined(x), self.w.value, self.b.value))
        self.h.value = 0.6 * old + drive
        return self.h.value + 0.4 * old**2


class Gates(Model):
    """An LSTM: two states, one product that is cut into gates."""

    names = ("c", "h")

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = weight(IN + HIDDEN, 4 * HIDDEN), weight(4 * HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(self.joined(x), self.w.value, self.b.value)
        i, f, o, z = jnp.split(y, 4, axis=-1)
        kept = jax.nn.sigmoid(f) * self.c.value
        self.c.value = kept + jax.nn.sigmoid(i) * jnp.tanh(z)
        self.h.value = jax.nn.sigmoid(o) * jnp.tanh(self.c.value)
        return self.h.value


class Layers(brainstate.nn.Module):
    """Two layers of unequal width, the first with processed weights, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Dense(), Gates()
        self.first.width = 4
        self.first.w, self.first.b = weight(IN + 4, 4), weight(4)
        self.second.w = weight(4 + HIDDEN, 4 * HIDDEN)
        self.out = bt.nn.Linear(HIDDEN, OUT)

    def update(self, x: Any) -> Any:
        return self.out(self.second(self.first(x)))


class Convolved(Model):
    """A line of places with two channels: every place hears its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.r = weight(2, 1, 1), weight(2, 2, 3)

    def start(self, batch_size: int | None) -> Any:
        return jnp.full((batch_size, 2, 4), 0.1)

    def update(self, x: Any) -> Any:
        line = jnp.concatenate([x, jnp.sin(x)], -1)[:, None]
        drive = bt.conv(line, self.k.value) + bt.conv(self.h.value, self.r.value)
        self.h.value = 0.4 * self.h.value + jnp.tanh(drive)
        return self.h.value


class Sparse(Model):
    """A ring in which every unit hears itself and one neighbour."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = weight(IN, 4), weight(8)
        ring = np.eye(4) + np.roll(np.eye(4), 1, axis=1)
        self.ring = saiunit.sparse.CSR.fromdense(jnp.asarray(ring))

    def update(self, x: Any) -> Any:
        recurrent = bt.sparse_matmul(self.h.value, self.r.value, sparse_mat=self.ring)
        self.h.value = jnp.tanh(bt.matmul(x, self.w.value) + recurrent)
        return self.h.value


own = bt.register_primitive(
    "rules_own",
    lambda x, w, b: jnp.tanh(x @ w) * jax.nn.softplus(b) + x.sum(-1, keepdims=True) * b**2,
    batched=True,
    trainable_invars_fn=lambda params: {"w": 1, "b": 2},
)


class Own(Model):
    """A primitive of which nothing is known but what it computes, not linear in its weights."""

    names = ("h", "v")

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = weight(IN + HIDDEN, HIDDEN), weight(HIDDEN)

    def update(self, x: Any) -> Any:
        y = own.bind(self.joined(x), self.w.value, self.b.value)
        self.v.value = 0.7 * self.v.value + y
        self.h.value = 0.6 * self.h.value * jnp.cos(self.v.value) + 0.5 * y
        return self.h.value * self.v.value


class Turned(Model):
    """The state lies across the operation's output, two states in one array; a learned leak."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.leak = weight(IN + HIDDEN, HIDDEN), weight(HIDDEN)

    def init_state(self, batch_size: int | None = None) -> None:
        self.s = brainstate.HiddenGroupState(self.start(batch_size))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.s.value = self.start(batch_size)

    def start(self, batch_size: int | None) -> Any:
        return jnp.full((HIDDEN, batch_size, 2), 0.1)

    def update(self, x: Any) -> Any:
        a, b = self.s.value[..., 0].T, self.s.value[..., 1].T
        leak = bt.element_wise(self.leak.value, jax.nn.sigmoid)
        y = bt.matmul(jnp.concatenate([x, a], -1), self.w.value)
        a, b = jnp.tanh(leak * b + y), 0.5 * b + jnp.sin(a)
        self.s.value = jnp.stack([a.T, b.T], axis=-1)
        return a * b


class Normed(Model):
    """A tail that mixes positions."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN + HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(self.joined(x), self.w.value)
        self.h.value = 0.5 * self.h.value + y / (1.0 + (y**2).sum(-1, keepdims=True))
        return jnp.sin(self.h.value)


class Vanilla(Model):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = weight(IN + HIDDEN, HIDDEN), weight(HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(bt.matmul(self.joined(x), self.w.value, self.b.value))
        return self.h.value


def case(build: Callable[[], Any], batch: int | None = 2, steps: int = STEPS) -> zoo.Case:
    model = build()
    brainstate.nn.init_all_states(model, batch_size=batch)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(steps, *(() if batch is None else (batch,)), IN)))
    shape = brainstate.transform.StatefulFunction(model).get_out_shapes(xs[0])[0].shape
    return zoo.Case(model, xs, jnp.asarray(rng.normal(size=(steps, *shape))), batch)


# --- rules ------------------------------------------------------------------------------------


def compiled(case: zoo.Case, make: Callable[..., Any], **options: Any) -> Any:
    learner = make(case.model, **options)
    learner.compile_graph(case.xs[0])
    return learner


@lru_cache(maxsize=4)
def step_of(learner: Any) -> Callable[..., Any]:
    """One function for all calls of a learner, so that it is compiled once."""
    return lambda x, y: zoo.Case.loss(None, learner(x), y)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def windows_of(learner: Any) -> Callable[..., Any]:
    def losses(x: Any, y: Any) -> Any:
        out = learner(bt.MultiStepData(x))
        return jax.vmap(lambda out, y: zoo.Case.loss(None, out, y))(out, y)  # type: ignore[arg-type]

    return losses


def sequence(case: zoo.Case, learner: Any, step: Any = None, **options: Any) -> Any:
    return learner.etrace_grad(
        case.xs, case.ys, step_fn=step or step_of(learner), reduction="sum", **options
    )


def again(case: zoo.Case, learner: Any) -> None:
    case.reset()
    learner.reset_state()


def traces_of(learner: Any) -> Any:
    return [state.value for state in learner.traces]


def data(case: zoo.Case) -> tuple[Any, Any, Any]:
    return case.model, (case.xs, case.ys), case.loss


def differs(found: Any, reference: Any) -> None:
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(found, reference, 1e-3)


# --- against the oracles ----------------------------------------------------------------------

EQUAL: dict[Any, list[str]] = {
    Dense: ["eprop"],
    Gates: ["ostl-recurrent", "snap-2-step"],
    Layers: ["eprop", "ostl-feedforward", "rtrl", "rtrl-step", "snap-1", "snap-2"],
    Convolved: ["snap-2", "snap-2-step", "snap-3-step"],
    Sparse: ["snap-2", "snap-2-step"],
    Own: ["eprop", "ostl-recurrent", "snap-1", "snap-2-step"],
    Turned: ["rtrl-step", "snap-2"],
    Normed: ["rtrl-step", "snap-1"],
}


@pytest.mark.parametrize(
    ("model", "name", "batch"),
    [
        *((model, name, 2) for model, names in EQUAL.items() for name in names),
        (Dense, "rtrl", None),
    ],
)
def test_equals_the_oracle(model: Any, name: str, batch: int | None) -> None:
    """In blocks that do not divide the sequence, so that traces are used and handed on."""
    here, rule = case(model, batch), RULES[name]
    oracle = rule.oracle(*data(here))
    learner = compiled(here, rule.learner)
    grads, losses = sequence(here, learner, block_size=2, return_value=True)
    assert_tree_close(losses, oracle.loss)
    assert_tree_close(grads, oracle.grads)


def test_rules_that_are_one() -> None:
    model = case(Dense).model
    coupled = bt.D_RTRL(model, recurrence_scope="coupled")
    assert bt.OSTLRecurrent(model).config == coupled.config
    within = (bt.SnAp(model, n=1, downstream="step"), bt.OSTLRecurrent(model, downstream="step"))
    assert within[0].config == within[1].config
    assert bt.EProp(model, kappa_filter_decay=0.0).config == bt.D_RTRL(model).config
    assert bt.OSTLFeedforward(model).config == bt.pp_prop(model, 0.0).config


def test_rules_differ() -> None:
    """So that no test above passes because two rules are one on these models."""
    known = [name for name in RULES if RULES[name].oracle and name != "d_rtrl-coupled"]
    groups = ["snap-2-step", "snap-3-step", "rtrl-step"]
    for model, names in ((Gates, known), (Convolved, groups)):
        here = case(model)
        found = [RULES[name].oracle(*data(here)).grads for name in names]
        same = {*groups, "snap-2", "snap-3", "rtrl"}, {"snap-1", "ostl-recurrent"}
        for i, name in enumerate(names):
            for j in range(i):
                if model is not Gates or not any({name, names[j]} <= one for one in same):
                    differs(found[i], found[j])


def test_full_influence_of_one_group_is_bptt() -> None:
    here = case(Gates)
    _, reference = bptt(*data(here))
    make = partial(bt.SnAp, n=HIDDEN, downstream="step")
    assert_tree_close(sequence(here, compiled(here, make)), reference)


# --- execution changes nothing ----------------------------------------------------------------

OTHERS = {
    "uoro": partial(bt.UORO, vjp_method="single-step"),
    "random feedback": partial(bt.EProp, feedback="random", random_feedback_key=3),
}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Dense, "eprop"),
        (Convolved, "snap-2-step"),
        (Layers, "snap-1"),
        (Dense, "uoro"),
        (Gates, "random feedback"),
    ],
)
def test_blocks_and_calls_give_the_same(model: Any, name: str) -> None:
    """For every block length, and for one gradient per call of the learner."""
    here = case(model)
    learner = compiled(here, OTHERS[name] if name in OTHERS else RULES[name].learner)
    reference = sequence(here, learner, block_size=1)
    traces = traces_of(learner)

    def check(grads: Any) -> None:
        assert_tree_close(grads, reference, 1e-10)
        assert_tree_close(traces_of(learner), traces, 1e-10, scale=1.0, allow_zero=("",))
        again(here, learner)

    again(here, learner)
    for block_size in (3, STEPS):
        check(sequence(here, learner, block_size=block_size))

    @brainstate.transform.jit
    def of_step(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: here.loss(learner(x), y), learner.param_states)()

    terms = [of_step(x, y) for x, y in zip(here.xs, here.ys, strict=True)]
    check(jax.tree.map(lambda *leaves: sum(leaves), *terms))


# --- windows ----------------------------------------------------------------------------------


def in_windows(here: zoo.Case, make: Any, size: int) -> Any:
    learner = compiled(here, make, vjp_method="multi-step")
    step = windows_of(learner)
    if size == 1:  # step_fn gets single steps
        step = lambda x, y: windows_of(learner)(x[None], y[None])[0]  # noqa: E731
    return learner, sequence(here, learner, step, chunk_size=size, return_value=True)


@pytest.mark.parametrize(
    ("model", "name", "size"),
    [
        (Gates, "pp_prop", 2),
        (Gates, "eprop", 3),
        (Convolved, "snap-2-step", 2),
        (Layers, "rtrl-step", 2),
        (Dense, "d_rtrl", 1),
    ],
)
def test_windows_equal_the_oracle(model: Any, name: str, size: int) -> None:
    here, rule = case(model), RULES[name]
    oracle = window_oracle(rule.oracle, *data(here), size)
    _, (grads, losses) = in_windows(here, rule.learner, size)
    assert_tree_close(losses, oracle.loss)
    assert_tree_close(grads, oracle.grads)


def test_one_gradient_per_window_is_that_of_the_driver() -> None:
    here = case(Dense, steps=4)
    learner, (reference, _) = in_windows(here, RULES["eprop"].learner, 2)
    traces = traces_of(learner)
    again(here, learner)

    @brainstate.transform.jit
    def of_window(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(
            lambda: windows_of(learner)(x, y).sum(), learner.param_states
        )()

    first, last = (of_window(here.xs[k : k + 2], here.ys[k : k + 2]) for k in (0, 2))
    assert_tree_close(jax.tree.map(jnp.add, first, last), reference, 1e-10)
    assert_tree_close(traces_of(learner), traces, 1e-10, scale=1.0, allow_zero=("",))


def test_windows_of_one_step_of_a_vanilla_rnn_are_truncated_to_two() -> None:
    here = case(Vanilla)
    _, reference = truncated_bptt(*data(here), 2)
    assert_tree_close(in_windows(here, bt.D_RTRL, 1)[1][0], reference)


@pytest.mark.parametrize(("model", "make"), [(Layers, RULES["eprop"].learner), (Dense, bt.DNI)])
def test_one_window_is_bptt(model: Any, make: Any) -> None:
    here = case(model)
    losses, reference = bptt(*data(here))
    _, (grads, found) = in_windows(here, make, STEPS)
    assert_tree_close(found, losses)
    assert_tree_close({path: grads[path] for path in reference}, reference)


def test_full_influence_of_one_group_is_bptt_in_windows() -> None:
    for downstream in ("step", "linear"):
        here, make = case(Gates), partial(bt.RTRL, downstream=downstream)
        _, reference = bptt(*data(here))
        assert_tree_close(in_windows(here, make, 2)[1][0], reference)


# --- other signals ----------------------------------------------------------------------------


PUBLISHED = {"kappa_filter_decay": 0.6, "downstream": "step"}


@pytest.mark.parametrize("model", [Layers, Convolved])
def test_random_feedback_equals_the_oracle(model: Any) -> None:
    here = case(model)
    learner = compiled(here, OTHERS["random feedback"], **PUBLISHED)
    groups = [group.hidden_paths for group in learner.graph.hidden_groups]
    matrices = dict(enumerate(map(np.asarray, learner.rule.source.matrices)))
    oracle = e_prop_oracle(*data(here), 0.6, matrices, groups=groups)
    assert_tree_close(sequence(here, learner, block_size=2), oracle.grads)
    differs(e_prop_oracle(*data(here), 0.6).grads, oracle.grads)
    for matrix in matrices.values():
        assert np.linalg.matrix_rank(matrix) == len(matrix)
    sizes = [matrix.shape for matrix in matrices.values()]
    assert sizes == [(group.varshape[-1],) * 2 for group in learner.graph.hidden_groups]


def test_an_error_is_fed_back_in_place_of_the_gradient() -> None:
    """One matrix, from the error to the output, explains the gradients of all parameters.

    The oracle is linear in it, so it is found by least squares.
    """
    here = case(Layers)
    learner = compiled(here, OTHERS["random feedback"], **PUBLISHED)
    errors = jnp.asarray(np.random.default_rng(4).normal(size=(STEPS, 2, 4)))

    def oracle(matrix: Any) -> np.ndarray:
        sequences = (here.xs, errors @ matrix)
        rule = e_prop_oracle(here.model, sequences, lambda out, fed: jnp.sum(out * fed), 0.6)
        return flat(rule.grads)

    columns = np.stack([oracle(one) for one in jnp.eye(4 * OUT).reshape(-1, 4, OUT)], axis=1)
    found = learner.etrace_grad(
        here.xs, errors, step_fn=lambda x, e: learner(x, error=e).sum(), reduction="sum"
    )
    matrix, *_ = np.linalg.lstsq(columns, flat(found), rcond=None)
    assert flat(found).size > 10 * matrix.size
    assert_tree_close(columns @ matrix, flat(found))


def flat(grads: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


@pytest.mark.parametrize(("model", "shape"), [(Layers, (2, 1)), (Gates, (2, HIDDEN)), (Dense, ())])
def test_three_factors_equal_the_oracle(model: Any, shape: tuple[int, ...]) -> None:
    here = case(model)
    m = jnp.asarray(np.random.default_rng(5).normal(size=(STEPS, *shape)))
    oracle = three_factor_oracle(*data(here), m)
    learner = compiled(here, bt.ThreeFactor)
    found = learner.etrace_grad(
        here.xs,
        here.ys,
        m,
        step_fn=lambda x, y, m: here.loss(learner(x, modulator=m), y),
        reduction="sum",
        block_size=2,
    )
    assert_tree_close(found, oracle.grads)


def test_traces_of_a_modulated_rule_need_no_modulator() -> None:
    here = case(Dense)
    rule, plain = (compiled(here, make).rule for make in (bt.ThreeFactor, bt.D_RTRL))
    values = here.model.states(brainstate.ParamState)
    operands = rule.executor.operand_values({path: s.value for path, s in values.items()})
    shape = lambda leaf: jnp.ones((1, *leaf.shape), leaf.dtype)  # noqa: E731
    block = Block(jax.tree.map(shape, rule.executor.jacobian_types), (jnp.ones((1, 1, 2, 3)),), ())
    found, expected = (one.update(None, block, operands) for one in (rule, plain))
    assert_tree_close(found, expected)


def test_a_state_modulates() -> None:
    """Calls that are given no modulator read it, as it is then."""
    here, m = case(Gates), np.random.default_rng(5).normal(size=STEPS)
    reward = brainstate.ShortTermState(jnp.zeros(()))
    learner = compiled(here, bt.ThreeFactor, modulator=reward)

    @brainstate.transform.jit
    def of_step(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: here.loss(learner(x), y), learner.param_states)()

    total = None
    for x, y, value in zip(here.xs, here.ys, m, strict=True):
        reward.value = jnp.asarray(value)
        grads = of_step(x, y)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    again(here, learner)
    assert_tree_close(total, three_factor_oracle(*data(here), m).grads)


# --- UORO: unbiased ---------------------------------------------------------------------------

EXAMPLES, KEYS = 400, 40


def estimates(here: zoo.Case, **options: Any) -> Any:
    """Gradients [KEYS, ...], each the mean over many copies of one example."""
    brainstate.nn.init_all_states(here.model, batch_size=EXAMPLES)
    wide = zoo.Case(
        here.model, *(jnp.repeat(s, EXAMPLES, axis=1) for s in (here.xs, here.ys)), EXAMPLES
    )
    learner = compiled(wide, bt.UORO, **options)
    if learner.vjp_method == "multi-step":
        run = partial(sequence, wide, learner, windows_of(learner), chunk_size=2)
    else:
        run = partial(sequence, wide, learner)
    found = []
    for number in range(KEYS):
        again(wide, learner)
        *_, state = learner.traces  # of the random numbers
        assert state.value.dtype == jnp.uint32
        state.value = jax.random.key_data(jax.random.key(number))
        found.append(jax.tree.map(lambda leaf: leaf / EXAMPLES, run()))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def within_bounds(samples: Any, exact: Any) -> bool:
    """Whether the mean is within 4.5 of its standard errors of what is exact, entry by entry."""
    inside = []
    for path, sample in samples.items():
        mean, error = sample.mean(0), sample.std(0, ddof=1) / np.sqrt(len(sample))
        inside.append(np.all(np.abs(mean - exact[path]) <= 4.5 * error + 1e-12))
    return all(inside)


@pytest.mark.parametrize(("model", "windows"), [(Dense, False), (Gates, True)])
def test_uoro_has_the_mean_of_rtrl(model: Any, windows: bool) -> None:
    """|mean - exact| <= 4.5 standard errors, small enough that 20 % of bias would show."""
    here = case(model, 1)
    exact, biased = (
        (
            window_oracle(RULES[name].oracle, *data(here), 2)
            if windows
            else RULES[name].oracle(*data(here))
        ).grads
        for name in ("rtrl-step", "ostl-recurrent")
    )
    samples = estimates(here, **({} if windows else {"vjp_method": "single-step"}))
    assert within_bounds(samples, exact)
    assert not within_bounds(samples, biased)
    for path, sample in samples.items():
        largest = np.unravel_index(np.argmax(np.abs(exact[path])), exact[path].shape)
        error = sample.std(0, ddof=1)[largest] / np.sqrt(KEYS)
        assert 0 < 4.5 * error < 0.2 * abs(exact[path][largest]), path


class OwnUORO(bt.ETraceVjpAlgorithm):
    """UORO by its public rule, as the documentation says."""

    jacobians = algorithms.UORORule.jacobians

    def make_rule(self, executor: Any) -> Any:
        return algorithms.UORORule(executor, self.trace_dtype)


def test_the_public_rule_of_uoro_has_the_mean_of_rtrl() -> None:
    """Over 1,000 keys, one example each."""
    here, keys = case(Dense, 1), 1000
    exact, biased = (RULES[name].oracle(*data(here)).grads for name in ("rtrl", "d_rtrl"))
    learner = compiled(here, OwnUORO)
    *_, random = learner.traces

    def one(key: Any) -> Any:
        again(here, learner)
        random.value = key
        return sequence(here, learner)

    samples = brainstate.transform.for_loop(
        one, jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), keys))
    )
    samples = jax.tree.map(np.asarray, samples)
    assert within_bounds(samples, exact) and not within_bounds(samples, biased)


@pytest.mark.parametrize("rule", [algorithms.UORORule, algorithms.SnApRule])
def test_a_rule_is_refused_without_the_jacobians_that_it_needs(rule: Any) -> None:
    class Near(bt.ETraceVjpAlgorithm):
        def make_rule(self, executor: Any) -> Any:
            return rule(executor, self.trace_dtype)

    class Whole(Near):
        jacobians = rule.jacobians

    here = case(Dense)
    text = (
        f"{rule.__name__} needs whole Jacobians .every entry within a hidden group., and the "
        "executor gives near ones .the entries between equal positions.. Write jacobians = 'whole'"
    )
    with pytest.raises(ValueError, match=text):
        compiled(here, Near)
    whole = compiled(here, Whole)
    assert whole.executor.jacobians == "whole" and whole.graph.recurrence_scope == "coupled"
    alone = bt.ETraceGraphExecutor(here.model, jacobians="whole")
    assert alone.options == {"recurrence_scope": "coupled"}
    full = bt.ETraceConfig(recurrence_scope="full")
    assert isinstance(compiled(here, Near, config=full).rule, rule)


def test_unknown_jacobians_are_refused() -> None:
    class Unknown(bt.ETraceVjpAlgorithm):
        jacobians = "far"

    with pytest.raises(ValueError, match="jacobians must be one of .'near', 'whole'., got 'far'"):
        Unknown(Dense())


def test_former_names_of_a_rule_count_for_one_release() -> None:
    """A rule and a source that define methods by their names of 0.3, and read a block so."""
    with pytest.warns(DeprecationWarning, match="Former.boundary is called solve_at_start now"):

        class Former(algorithms.ParamDimRule):
            def boundary(self, traces: Any, signal: Any, operands: Any) -> Any:
                doubled = tuple(None if s is None else 2.0 * s for s in signal)
                return super().boundary(traces, doubled, operands)

    with pytest.warns(DeprecationWarning, match="Source.at_boundary is called at_start now"):

        class Source(algorithms.SignalSource):
            def replaced(self, block: Any) -> Any:
                return block._replace(late=block.late)

            def at_boundary(self, signal: Any) -> Any:
                return signal

    class Learner(bt.ETraceVjpAlgorithm):
        def make_rule(self, executor: Any) -> Any:
            return algorithms.Resignalled(Former(executor, self.trace_dtype), Source())

    here = case(Dense)
    found = []
    for make in (bt.D_RTRL, Learner):
        learner = compiled(here, make, vjp_method="multi-step")
        again(here, learner)
        run = partial(sequence, here, learner, windows_of(learner), chunk_size=2)
        if make is Learner:
            with pytest.warns(DeprecationWarning, match="ParamDimRule.boundary is called"):
                found.append(run())
        else:
            found.append(run())
    differs(*found)  # credit from before the windows counts twice
    learner = compiled(here, Learner)
    again(here, learner)
    with pytest.warns(DeprecationWarning, match="Block.late is called old_signal now"):
        stepwise = sequence(here, learner)
    again(here, learner)
    assert_tree_close(stepwise, sequence(here, compiled(here, bt.D_RTRL)))


# --- DNI --------------------------------------------------------------------------------------


def window_gradient(here: zoo.Case, part: slice, values: Any, predict: Any) -> Any:
    """d (losses of a window and prediction at its end) / d (hidden values before), and those after.

    ``values``: of the hidden states, by path.
    """
    step = brainstate.transform.StatefulFunction(here.model.update, return_only_write=False)
    path_of = {id(state): path for path, state in brainstate.graph.states(here.model).items()}
    states = step.get_states(here.xs[0])
    paths = [path_of[id(state)] for state in states]

    def end(values: Any) -> Any:
        now = [values.get(path, s.value) for path, s in zip(paths, states, strict=True)]
        total = 0.0
        for x, y in zip(here.xs[part], here.ys[part], strict=True):
            now, out = step.jaxpr_call(now, x)
            total = total + here.loss(out, y)
        return total, {path: v for path, v in zip(paths, now, strict=True) if path in values}

    (_, after), pull = jax.vjp(end, values)
    return pull((jnp.ones(()), predict(after)))[0], after


def test_dni_equals_the_reference() -> None:
    """Parameters of the model, and of the predictions, which learn what the gradient was."""
    here, rng = case(Gates), np.random.default_rng(6)
    learner = compiled(here, bt.DNI)
    maps = {}
    for path, state in learner.synthesizer.maps.items():
        maps[path] = {
            "weight": 0.5 * rng.normal(size=(HIDDEN, HIDDEN)),
            "bias": 0.5 * rng.normal(size=HIDDEN),
        }
        state.value = jax.tree.map(jnp.asarray, maps[path])

    def predict(hidden: Any) -> Any:
        return {p: h @ maps[p]["weight"] + maps[p]["bias"] for p, h in hidden.items()}

    losses, reference = dni_reference(*data(here), 2, lambda steps, hidden: predict(hidden))
    hidden = {path: state.value for path, state in learner.hidden_states.items()}
    errors = {path: [] for path in maps}  # what is predicted at the start of each window, and is
    for start in range(0, STEPS, 2):
        targets, after = window_gradient(here, slice(start, start + 2), hidden, predict)
        for path, wrong in predict(hidden).items():
            errors[path].append((hidden[path], wrong - targets[path]))
        hidden = after
    for path, pairs in errors.items():
        reference["synthesizer", *path] = {
            "weight": sum(h.T @ error for h, error in pairs),
            "bias": sum(error.sum(0) for _, error in pairs),
        }
    found, found_losses = sequence(
        here, learner, windows_of(learner), chunk_size=2, return_value=True
    )
    assert_tree_close(found_losses, losses)
    assert_tree_close(found, reference)
