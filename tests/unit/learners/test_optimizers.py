# SPDX-License-Identifier: Apache-2.0
"""Optimizers of other libraries as one call."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from braintrace.learners.optimizers import (
    OptaxOptimizer,
    as_optimizer,
    is_transformation,
    with_states,
)
from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import (
    T,
    made,
    summed,
    weights_of,
)


def test_an_optimizer_with_an_update_method_of_its_own(data: Any) -> None:
    class Descent:
        def __init__(self, weights: Any) -> None:
            self.weights = weights

        def update(self, grads: Any) -> None:
            for key, state in self.weights.items():
                state.value = jax.tree.map(lambda w, g: w - 0.05 * g, state.value, grads[key])

    a, b = made(), made()
    a.etrace_update(*data, step_fn=summed(a), optimizer=Descent(a.param_states))
    b.etrace_update(*data, step_fn=summed(b), optimizer=optax.sgd(0.05))
    assert_tree_close(weights_of(a), weights_of(b))


def test_an_object_that_is_a_transformation(data: Any, tmp_path: Any) -> None:
    """``optax.MultiSteps``: updates follow the mean of three gradients."""
    multi = optax.MultiSteps(optax.sgd(0.1), 3)
    assert is_transformation(multi) and not is_transformation(optax.MultiSteps)
    a, b, c = made(), made(), made()
    losses = a.etrace_update(*data, step_fn=summed(a), optimizer=multi, update_every=1)
    assert losses.shape == (T,) and a.optimizer(multi).moments.value.mini_step == T % 3
    same = multi.gradient_transformation()
    b.etrace_update(*data, step_fn=summed(b), optimizer=same)
    assert_tree_close(weights_of(a), weights_of(b))
    for start in (0, 3):  # of T = 7 steps, the last one waits for two more
        part = [v[start : start + 3] for v in data]
        grads = c.etrace_grad(*part, step_fn=summed(c), block_size=1)
        for path, state in c.param_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.1 * g, state.value, grads[path])
    assert_tree_close(weights_of(a), weights_of(c), 1e-6)
    a.save(tmp_path / "file.npz", multi)
    other = made()
    other.optimizer(multi)
    other.restore(tmp_path / "file.npz", multi)
    for learner in (a, other):
        learner.etrace_update(*data, step_fn=summed(learner), optimizer=multi)
    assert_tree_close(weights_of(a), weights_of(other))


def test_an_object_with_the_methods_of_a_transformation(data: Any) -> None:
    class Descent:
        def init(self, weights: Any) -> Any:
            return ()

        def update(self, grads: Any, state: Any, weights: Any = None) -> Any:
            return jax.tree.map(lambda g: -0.05 * g, grads), state

    class Holding(Descent):
        def update(self, grads: Any, value: Any = None) -> None: ...  # type: ignore[override]

    assert is_transformation(Descent()) and not is_transformation(Holding())
    a, b = made(), made()
    a.etrace_update(*data, step_fn=summed(a), optimizer=Descent())
    b.etrace_update(*data, step_fn=summed(b), optimizer=optax.sgd(0.05))
    assert_tree_close(weights_of(a), weights_of(b))


@pytest.mark.parametrize(
    ("transformation", "text"),
    [
        (optax.polyak_sgd(), "missing 1 required keyword-only argument: 'value'"),
        (optax.lbfgs(), "'value', 'grad', and 'value_fn'"),
        (optax.lookahead(optax.sgd(0.1), 2, 0.5), "no attribute 'fast'"),
    ],
)
def test_transformations_that_need_more(transformation: Any, text: str, data: Any) -> None:
    learner = made()
    with pytest.raises(TypeError, match=f"{text}.*take gradients with etrace_grad"):
        learner.etrace_update(*data, step_fn=summed(learner), optimizer=transformation)
    with pytest.raises(TypeError, match=r"expected an optax\.GradientTransformation, got 3"):
        learner.optimizer(3)


def test_the_state_of_the_optimizer_goes_on(data: Any) -> None:
    adam = optax.adam(1e-2)
    a, b = made(), made()
    a.etrace_update(*data, step_fn=summed(a), optimizer=adam)
    for half in (slice(0, 4), slice(4, T)):
        b.etrace_update(*(v[half] for v in data), step_fn=summed(b), optimizer=adam)
    assert_tree_close(weights_of(a), weights_of(b))
    assert a.optimizer(adam) is a.optimizer(adam)


def test_a_new_transformation_at_each_call_is_a_warning(data: Any) -> None:
    learner = made()
    for _ in range(3):
        learner.optimizer(optax.adam(0.1))
    with pytest.warns(UserWarning, match="new optax transformation at each call.* make it once"):
        learner.optimizer(optax.adam(0.1))


def test_saving_finds_the_optimizer_of_some_weights(data: Any, tmp_path: Any) -> None:
    """It makes no other one, and a learner that has it goes on from there."""
    transformation, learner = optax.adam(0.1), made()
    some = {"Wz": learner.param_states["cell", "Wz", "weight"]}
    options = {"optimizer": transformation, "weights": some}
    learner.etrace_update(*data, step_fn=summed(learner), **options)
    learner.save(tmp_path / "file.npz", transformation)
    assert len(learner._optimizers) == 1
    other = made()
    own = other.optimizer(transformation, {"Wz": other.param_states["cell", "Wz", "weight"]})
    other.restore(tmp_path / "file.npz", transformation)
    kept = learner.optimizer(transformation, some)
    assert_tree_close(kept.moments.value, own.moments.value)


@pytest.mark.parametrize("optimizer", [None, optax.sgd, 3])
def test_optimizers_that_are_none(optimizer: Any, data: Any) -> None:
    learner = made()
    with pytest.raises(TypeError, match=r"optimizer must be an optax.GradientTransf") as error:
        learner.etrace_update(*data, step_fn=summed(learner), optimizer=optimizer)
    assert ("call it first" in str(error.value)) == callable(optimizer)


def weights() -> dict[str, Any]:
    return {
        "a": brainstate.ParamState(jnp.array([1.0, 2.0])),
        "b": brainstate.ParamState(jnp.ones((), "bfloat16")),
    }


def test_weights_change_in_place_in_their_own_dtype() -> None:
    states = weights()
    own = OptaxOptimizer(optax.sgd(0.5), states)
    own.update({"a": jnp.array([2.0, 4.0]), "b": jnp.array(1.0)})
    assert states["a"].value.tolist() == [0.0, 0.0]
    assert states["b"].value.dtype == "bfloat16" and float(states["b"].value) == 0.5


def test_moments_go_on_from_update_to_update() -> None:
    states = weights()
    own = OptaxOptimizer(optax.sgd(1.0, momentum=0.5), states)
    for _ in range(2):
        own.update({"a": jnp.ones(2), "b": jnp.zeros(())})
    np.testing.assert_allclose(states["a"].value, [1.0 - 2.5, 2.0 - 2.5])  # 1, then 1 + 0.5


def test_an_optimizer_fits_the_same_weights_only() -> None:
    states, sgd = weights(), optax.sgd(0.1)
    own = OptaxOptimizer(sgd, states)
    assert own.fits(sgd, dict(states))
    assert not own.fits(optax.sgd(0.1), states)
    assert not own.fits(sgd, {"a": states["a"]})
    assert not own.fits(sgd, {"a": states["b"], "b": states["a"]})


def test_no_optimizer_is_made_inside_a_transformation() -> None:
    states = weights()

    @brainstate.transform.jit
    def run() -> None:
        OptaxOptimizer(optax.sgd(0.1), states)

    with pytest.raises(ValueError, match="cannot be made inside jit .* once before"):
        run()


def test_learners_that_a_transformation_makes_have_optimizers() -> None:
    """Several seeds at once: what is made inside ends there, the optimizer's state too."""
    xs = jnp.linspace(-1.0, 1.0, 24).reshape(4, 2, 3)

    def train(key: jax.Array) -> jax.Array:
        cell = bt.nn.MinimalRNNCell(3, 2, key=key)
        learner = bt.compile(cell, "d_rtrl", xs[0], batch_size=2)
        adam = learner.optimizer(optax.adam(0.1))
        learner.etrace_update(xs, step_fn=lambda x: (learner(x) ** 2).mean(), optimizer=adam)
        return jnp.concatenate([w.ravel() for w in jax.tree.leaves(weights_of(learner))])

    keys = jax.random.split(jax.random.key(0), 2)
    with warnings.catch_warnings(action="error"):
        found = brainstate.transform.vmap(train)(keys)
    np.testing.assert_allclose(found, [train(key) for key in keys], rtol=1e-12)


def test_what_is_a_transformation() -> None:
    assert is_transformation(optax.adam(0.1))
    for other in (optax.adam, None, (1, 2), OptaxOptimizer(optax.sgd(0.1), weights())):
        assert not is_transformation(other)


def test_a_learner_keeps_an_optimizer_for_each_transformation() -> None:
    learner, sgd = made(), optax.sgd(0.1)
    own = learner.optimizer(sgd)
    assert learner.optimizer(sgd) is own is with_states(learner, sgd)
    assert with_states(learner, own) is own
    some = {"w": next(iter(learner.param_states.values()))}
    other = learner.optimizer(sgd, some)
    assert other is not own and with_states(learner, sgd) == [own, other]
    assert as_optimizer(learner, sgd, some) == other.update
    assert as_optimizer(learner, own, some) == own.update
    with pytest.raises(TypeError, match="with a method update"):
        as_optimizer(learner, OptaxOptimizer, some)
