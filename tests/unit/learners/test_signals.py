# SPDX-License-Identifier: Apache-2.0
"""Learners with a signal of their own: modulators, errors, predictions."""

from __future__ import annotations

from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms.signals import _spread
from braintrace.learners.signals import (
    SyntheticGradient,
    along_positions,
    feed_back,
    feedback_matrix,
)
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.drivers.net import HIDDEN, IN, B, Growing, Net, made, summed

X = jnp.ones((2, zoo.IN))


XS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, zoo.IN)))


CONFIG = bt.ETraceConfig


def compiled(algorithm: Any, model: Any = None, **options: Any) -> Any:
    brainstate.random.seed(3)
    return bt.compile(model or zoo.Leaky(), algorithm, X, batch_size=2, **options)


def grads(learner: Any, **options: Any) -> Any:
    learner.reset_state(batch_size=2, model_states=True)
    return learner.etrace_grad(XS, step_fn=lambda x: jnp.mean(learner(x) ** 2), **options)


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


def test_synthetic_gradients_learn_the_future(data: Any) -> None:
    """With a linear recurrence and a linear loss, the gradient of the future is constant."""
    xs = data[0]
    learner = made("dni", model=Growing(0.5))
    assert ("synthesizer", "h") in learner.param_states
    step_fn = lambda x: learner(x).sum()  # noqa: E731
    for _ in range(200):
        grads = learner.etrace_grad(xs, step_fn=step_fn, reduction="sum")
        state = learner.param_states["synthesizer", "h"]
        state.value = {
            **state.value,
            "bias": state.value["bias"] - 0.05 * grads["synthesizer", "h"]["bias"],
        }
    # 1 + 1/2 + 1/4 + ...: what a hidden value does to all later losses, 0.5 / (1 - 0.5)
    np.testing.assert_allclose(state.value["bias"], np.full(HIDDEN, 1.0), rtol=1e-3)


def test_a_modulator_meets_the_traces_of_any_rule(data: Any) -> None:
    """With the gradient of the sum of the hidden states as modulator, it is pp_prop."""
    options = {"trace_factorization": "io_factorized", "decay": 0.7}
    given = made(bt.ETraceConfig(learning_signal="modulatory", **options), model=Net().cell)
    plain = made(bt.ETraceConfig(**options), model=Net().cell)
    a = given.etrace_grad(data[0], step_fn=lambda x: given(x, modulator=1.0).sum())
    b = plain.etrace_grad(data[0], step_fn=lambda x: plain(x).sum())
    assert_tree_close(a, b)


def test_the_modulator_is_per_call_or_a_state(data: Any) -> None:
    xs, ys = data
    a = made("three_factor", modulator=brainstate.ShortTermState(jnp.asarray(0.5)))
    b = made("three_factor")
    standing = a.etrace_grad(xs, ys, step_fn=summed(a))
    given = b.etrace_grad(
        xs, ys, step_fn=lambda x, y: ((b(x, modulator=0.5) - y) ** 2).sum(), block_size=2
    )
    assert_tree_close(standing, given)
    with pytest.raises(ValueError, match="needs a modulator"):
        b(xs[0])
    with pytest.raises(ValueError, match="does not broadcast to the positions"):
        b(xs[0], modulator=jnp.zeros(5))


def test_random_feedback_is_the_same_in_every_default_precision() -> None:
    """A matrix that is drawn in another dtype has other numbers."""
    learner = made("eprop", feedback="random", random_feedback_key=0)
    assert {matrix.dtype.name for matrix in learner.rule.source.matrices} == {"float32"}


def test_an_error_is_fed_back_in_the_dtype_of_the_output() -> None:
    out, error = jnp.ones((B, HIDDEN), "float32"), jnp.ones((B, 2), "float32")
    matrix = feedback_matrix(0, out, error)
    fed = jax.grad(lambda out: feed_back(out, error, matrix).sum())(out)
    assert (matrix.dtype, fed.dtype) == (out.dtype, out.dtype)


def test_an_error_is_fed_back_to_the_output(data: Any) -> None:
    """The gradient is that of the output's product with the error times a fixed matrix."""
    from braintrace.learners.signals import feedback_matrix

    xs, ys = data
    random = {"feedback": "random", "random_feedback_key": 5}
    a = made("eprop", model=bt.nn.GRUCell(IN, HIDDEN, key=1), **random)
    b = made("d_rtrl", model=bt.nn.GRUCell(IN, HIDDEN, key=1))
    matrix = feedback_matrix(5, jnp.zeros((B, HIDDEN), float), ys[0])
    assert matrix.shape == (IN, HIDDEN)
    fed = a.etrace_grad(xs, ys, step_fn=lambda x, e: a(x, error=e).sum(), reduction="sum")
    direct = b.etrace_grad(
        xs, ys, step_fn=lambda x, e: (b(x) * (e @ matrix)).sum(), reduction="sum"
    )
    assert_tree_close(fed, direct)
    with pytest.raises(ValueError, match="fed back by feedback='random' only"):
        made("eprop")(xs[0], error=ys[0])


def test_an_error_is_fed_back_whatever_the_loss_is() -> None:
    out, error = jnp.ones((2, 3)), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    matrix = jnp.arange(6.0).reshape(2, 3)
    assert feed_back(out, error, matrix) is not None
    fed = jax.grad(lambda out: (7 * feed_back(out, error, matrix) ** 3).sum())(out)
    assert fed.tolist() == [[0.0, 1.0, 2.0], [6.0, 8.0, 10.0]]  # error @ matrix


def test_a_feedback_matrix_is_fixed_and_of_that_variance() -> None:
    out, error = jnp.zeros((2, 200)), jnp.zeros((2, 50))
    matrix = feedback_matrix(3, out, error)
    assert jnp.array_equal(matrix, feedback_matrix(jax.random.key(3), out, error))
    assert not jnp.array_equal(matrix, feedback_matrix(4, out, error))
    assert float(matrix.var()) == pytest.approx(1 / 50, rel=0.1)


@pytest.mark.parametrize(
    ("out", "error", "kind", "text"),
    [
        ((jnp.ones(2), jnp.ones(2)), jnp.ones(2), TypeError, "returns one floating-point array"),
        (np.ones(2, int), np.ones(2), TypeError, "returns one floating-point array"),
        (np.ones((2, 3)), np.ones((4, 3)), ValueError, r"error has shape \(4, 3\) and the model's"),
        (np.ones(()), np.ones(2), ValueError, r"they must be \[.., m\] and \[.., n\]"),
    ],
)
def test_errors_that_do_not_fit(out: Any, error: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        feedback_matrix(0, out, error)


def test_predictions_are_affine_and_zero_at_first() -> None:
    states = {
        ("h",): brainstate.HiddenState(jnp.ones((2, 3))),
        ("s",): brainstate.HiddenState(jnp.ones(())),
    }
    maps = SyntheticGradient(states)
    hidden = {path: state.value for path, state in states.items()}
    found = maps.predict(maps.values(), hidden)
    assert {path: v.shape for path, v in found.items()} == {("h",): (2, 3), ("s",): ()}
    assert not any(v.any() for v in found.values())
    assert {*maps.states_by_path} == {("synthesizer", "h"), ("synthesizer", "s")}
    weight = jnp.arange(9.0).reshape(3, 3)
    values = {("h",): {"weight": weight, "bias": jnp.ones(3)}}
    predicted = maps.predict(values, {("h",): jnp.eye(3)[:2]})[("h",)]
    assert predicted.tolist() == (weight[:2] + 1).tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"feedback": "fixed"}, "feedback must be 'symmetric' or 'random', got 'fixed'"),
        ({"feedback": "random"}, "needs random_feedback_key"),
        ({"kappa_filter_decay": 1.0}, r"kappa must be a number in \[0, 1\)"),
    ],
)
def test_options_of_eprop(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        bt.EProp(zoo.Leaky(), **options)


# --- whose axis a modulator has ------------------------------------------------------------------


def modulated(b: int, n: int, modulator: Any, **options: Any) -> Any:
    """The gradient of one cell [b, n] under a modulator, or whatever it raises."""
    brainstate.random.seed(0)
    xs = jax.random.normal(jax.random.key(0), (3, b, 2), float)
    cell = bt.nn.GRUCell(2, n)
    learner = bt.compile(cell, "three_factor", xs[0], batch_size=b, **options)
    return learner.etrace_grad(xs, step_fn=lambda x: learner(x, modulator=modulator).sum())


def row(size: int) -> Any:
    return jnp.arange(1.0, size + 1, dtype=float)


@pytest.mark.parametrize("sizes", [(2, 5), (4, 3), (3, 1), (1, 3)])
def test_a_modulator_of_examples_or_of_neurons(sizes: tuple[int, int]) -> None:
    b, n = sizes
    by_example, by_neuron = (modulated(b, n, m) for m in (row(b)[:, None], row(n)[None]))
    assert_tree_close(modulated(b, n, row(b)), by_example)
    assert_tree_close(modulated(b, n, row(n)), by_neuron)


def test_a_modulator_that_may_be_either_is_refused_with_both_readings() -> None:
    says = (
        r"modulator has shape \(3,\), which fits the positions \(3, 3\) of every hidden group in 2 "
        r"ways: along their first axes, as modulator.reshape\(3, 1\) does; along their last axes, "
        r"as modulator.reshape\(1, 3\) does"
    )
    with pytest.raises(ValueError, match=says):
        modulated(3, 3, row(3))
    first, last = modulated(3, 3, row(3)[:, None]), modulated(3, 3, row(3)[None])
    assert not np.allclose(first["Wz", "weight"]["weight"], last["Wz", "weight"]["weight"])
    with pytest.raises(ValueError, match=r"does not broadcast to the positions \(3, 5\)"):
        modulated(3, 5, row(4))


@pytest.mark.parametrize("n", [3, 5])
def test_with_vmap_the_first_axis_is_that_of_examples(n: int) -> None:
    found = modulated(3, n, row(3), vmap=True)
    assert_tree_close(found, modulated(3, n, row(3)[:, None]))
    if n != 3:
        with pytest.raises(ValueError, match="with vmap=True, its first axis is that of examples"):
            modulated(3, n, row(n), vmap=True)


def test_a_modulator_of_a_call_of_several_steps_is_not_one_of_steps() -> None:
    xs, cell = jnp.ones((4, 2, 2), float), bt.nn.GRUCell(2, 4)
    learner = bt.compile(cell, "three_factor", xs[0], batch_size=2)
    with pytest.raises(ValueError, match="in 2 ways: along their last.*; step by step"):
        learner(bt.MultiStepData(xs), modulator=row(4))
    learner(bt.MultiStepData(xs), modulator=row(4)[None])
    for fits in (xs[:2], xs[:1]):  # as many steps as examples: [2, 4] may be of either
        given = (bt.MultiStepData(fits), jnp.ones((2, 4)), jnp.ones((2, 2, 1)))
        if len(fits) == 1:
            learner(given[0], modulator=given[1])
            continue
        with pytest.raises(ValueError, match=r"\(2, 4\) of every .* in 2 ways: axis by axis; step"):
            learner(given[0], modulator=given[1])
    square = bt.compile(bt.nn.GRUCell(2, 2), "three_factor", xs[0], batch_size=2)
    with pytest.raises(ValueError, match="axis by axis, with the states last; step by step"):
        square(bt.MultiStepData(xs[:2]), modulator=given[2])


@pytest.mark.parametrize("options", [{}, {"vmap": True}, {"block_size": 2}])
def test_masks_and_errors_of_as_many_steps_examples_and_neurons(options: dict[str, Any]) -> None:
    """With T = B = N = 3, a mask is [T, B], an error [B, m], whatever the numbers."""
    xs = jax.random.normal(jax.random.key(0), (3, 3, 2), float)
    mask = jnp.arange(9.0).reshape(3, 3) % 4
    block = {k: v for k, v in options.items() if k == "block_size"}
    vmap = {k: v for k, v in options.items() if k == "vmap"}

    def of(algorithm: str, step: Any, *sequences: Any, **how: Any) -> Any:
        learner = bt.compile(
            bt.nn.GRUCell(2, 3, key=1), algorithm, xs[0], batch_size=3, **vmap, **how.pop("of", {})
        )
        return learner.etrace_grad(
            *sequences, step_fn=partial(step, learner), reduction="sum", **{**block, **how}
        )

    masked = of("d_rtrl", lambda learner, x: (learner(x) ** 2).sum(-1), xs, mask=mask)
    by_hand = of("d_rtrl", lambda learner, x, m: (m[:, None] * learner(x) ** 2).sum(), xs, mask)
    assert_tree_close(masked, by_hand)
    random = {"of": {"feedback": "random", "random_feedback_key": 5}}
    errors = jax.random.normal(jax.random.key(1), (3, 3, 3), float)
    matrix = feedback_matrix(5, errors[0], errors[0])
    fed = of("eprop", lambda learner, x, e: learner(x, error=e).sum(), xs, errors, **random)
    direct = of("d_rtrl", lambda learner, x, e: (learner(x) * (e @ matrix)).sum(), xs, errors)
    assert_tree_close(fed, direct)


def test_groups_of_several_ranks_are_read_alike() -> None:
    shapes = [(3, 4), (3,), (3, 2, 4)]
    for given in (row(3), row(3)[:, None], row(3)[:, None, None]):
        found = along_positions(given, shapes, False)
        assert [v.shape for v in found] == shapes
        assert all((v[2] == 3).all() and (v[0] == 1).all() for v in found)
    (last, other) = along_positions(row(4), [(3, 4), (3, 2, 4)], False)
    assert (last[:, 1] == 2).all() and (other[..., 3] == 4).all()
    with pytest.raises(ValueError, match=r"\(3, 3\), \(3, 2, 3\) of every hidden group in 2 ways"):
        along_positions(row(3), [(3, 3), (3, 2, 3)], False)


def test_a_modulator_in_a_block_has_all_axes() -> None:
    """What a driver of one's own gives a rule is not guessed either."""
    rule = compiled("three_factor").rule
    positions = rule.executor.groups[0]
    shape = positions.group.varshape
    alike = [_spread(jnp.ones(s), positions) for s in ((5,), (5, *shape), (5, 1, *shape))]
    assert all(jnp.array_equal(one, alike[0]) for one in alike)
    with pytest.raises(ValueError, match=r"must be \[K\], \[K, \*V\] or \[K, S, \*V\]"):
        _spread(jnp.ones((5, shape[0])), positions)


class Single(brainstate.nn.Module):
    """One number for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((3, 1)))

    def init_state(self, *args: Any, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(()))

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + jnp.tanh(bt.matmul(x, self.w.value)[..., 0])
        return self.h.value


def test_examples_are_not_mixed_by_matrices_over_neurons() -> None:
    """A state [] of one example is [B] in a batch: random feedback and predictions keep it so."""
    x, options = jnp.ones((4, 3)), {"batch_size": 4, "vmap": True}
    random = bt.compile(Single(), "eprop", x, feedback="random", random_feedback_key=1, **options)
    assert random.rule.source.matrices[0].shape == (1, 1)
    with pytest.raises(ValueError, match=r"shape \(4,\), which may be a value for each of 4 ex"):
        random(x, error=jnp.ones(4))
    predicting = bt.compile(Single(), "dni", x, **options)
    values = {("h",): {"weight": jnp.full((1, 1), 2.0), "bias": jnp.ones(1)}}
    assert predicting.param_states["synthesizer", "h"].value["weight"].shape == (1, 1)
    predicted = SyntheticGradient.predict(values, {("h",): row(4)})["h",]
    np.testing.assert_allclose(predicted, 2 * row(4) + 1)
    assert predicting(bt.MultiStepData(x[None])).shape == (1, 4)
