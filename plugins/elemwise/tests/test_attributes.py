# SPDX-License-Identifier: Apache-2.0
"""Attributes that are trained: exact gradients, units, assignments."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace
from braintrace.testing import assert_tree_close, bptt
from braintrace_elemwise.nn import TrainedAttribute

STEPS, BATCH, N = 7, 2, 3


class Neurons(brainstate.nn.Module):
    """Leaky neurons with a soft reset, as a library has them."""

    def __init__(self, tau, threshold):
        super().__init__()
        self.tau, self.threshold = tau, threshold

    def init_state(self, **_):
        self.v = brainstate.HiddenState(jnp.full((BATCH, N), 0.1) * u.mV)

    def reset_state(self, **_):
        self.v.value = jnp.full((BATCH, N), 0.1) * u.mV

    def update(self, x):
        spikes = jax.nn.sigmoid((self.v.value - self.threshold) / (0.5 * u.mV))
        decay = jnp.exp(-(1.0 * u.ms / self.tau))
        self.v.value = decay * (self.v.value - self.threshold * spikes) + (1 - decay) * x
        return spikes


class Trained(Neurons):
    tau = TrainedAttribute()
    threshold = TrainedAttribute(lambda w: 2 * w, lambda value: value / 2)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def loss(spikes, target):
    return jnp.sum((spikes - target) ** 2)


@pytest.mark.parametrize("tau", [20.0, np.array([5.0, 10.0, 20.0])])
def test_gradients_are_those_of_backpropagation(tau):
    model = Trained(tau * u.ms, 1.0 * u.mV)
    data = draw(STEPS, BATCH, N) * u.mV, draw(STEPS, BATCH, N, seed=1)
    learner = braintrace.compile(model, "d_rtrl", data[0][0])
    found = learner.etrace_grad(
        *data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", block_size=3
    )
    learner.reset_state(model_states=True)
    assert set(found) == {("tau_param",), ("threshold_param",)}
    assert found["tau_param",].shape == np.shape(tau)
    assert_tree_close(found, bptt(model, data, loss)[1], 1e-9)


def test_assignments_give_the_parameter_a_value_in_its_unit():
    model = Trained(20.0 * u.ms, 1.0 * u.mV)
    state = model.tau_param
    model.tau = 0.01 * u.second
    assert model.tau_param is state and u.math.allclose(model.tau, 10.0 * u.ms)
    np.testing.assert_allclose(state.value, np.log(10.0))
    with pytest.raises(ValueError, match=r"shape \(\), got \(2,\)"):
        model.tau = jnp.ones(2) * u.ms
    with pytest.raises(u.UnitMismatchError):
        model.tau = 1.0 * u.mV
    with pytest.raises(ValueError, match=r"tau of Trained cannot start at -1\.0"):
        Trained(-1.0, 1.0 * u.mV)
    with pytest.raises(TypeError, match="tau"):
        Trained("slow", 1.0 * u.mV)
    with pytest.raises(TypeError, match="inverse must be a function"):
        TrainedAttribute(inverse=None)
    assert isinstance(Trained.tau, TrainedAttribute)
    assert not hasattr(Trained.__new__(Trained), "tau")


class WithoutItsInverse(Neurons):
    tau = TrainedAttribute(jax.nn.softplus)


def test_functions_that_do_not_undo_one_another_are_refused():
    with pytest.raises(ValueError, match=r"tau of WithoutItsInverse .* must undo one another"):
        WithoutItsInverse(10.0 * u.ms, 1.0 * u.mV)


def test_a_module_can_be_made_inside_of_a_program():
    """For several seeds at once; values are checked where they are known."""

    def made(tau):
        return Trained(tau * u.ms, 1.0 * u.mV).tau / u.ms

    taus = jnp.array([5.0, 10.0])
    assert_tree_close(jax.jit(made)(taus), taus)
    assert_tree_close(brainstate.transform.vmap(made)(taus), taus)
