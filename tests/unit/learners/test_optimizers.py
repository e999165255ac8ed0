# SPDX-License-Identifier: Apache-2.0
"""Optimizers of other libraries as one call."""

from __future__ import annotations

from typing import Any

import jax
import optax
import pytest

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
    with pytest.raises(TypeError, match=r"optimizer must be an optax.GradientTransformation"):
        learner.etrace_update(*data, step_fn=summed(learner), optimizer=optimizer)
