# SPDX-License-Identifier: Apache-2.0
"""Time constants and thresholds of ``brainpy.state`` neurons: exact, with nothing else changed."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt

pytest.importorskip("brainpy.state", reason="brainpy is installed with braintrace-core[neurons]")

import brainpy.state as bp

from . import zoo

STEPS, BATCH = 8, 3
#: Of each neuron, the attributes that are trained.
TRAINED = {
    "LIF": ("tau", "V_th", "R"),
    "ALIF": ("tau", "tau_a", "beta"),
    "AdExIF": ("tau", "tau_w", "delta_T"),
}


class Layer(brainstate.nn.Module):
    """Neurons behind a dense layer."""

    def __init__(self, kind):
        super().__init__()
        self.inputs, self.neurons = zoo.linear(0, zoo.IN, zoo.N, zoo.CURRENT, 5.0), kind(zoo.N)

    def update(self, x):
        return self.neurons(self.inputs(x))


@pytest.mark.parametrize("name", TRAINED)
def test_attributes_of_neurons_have_the_gradient_of_backpropagation(name):
    attributes = {each: bt.nn.TrainedAttribute() for each in TRAINED[name]}
    model = Layer(type("Trained", (getattr(bp, name),), attributes))
    data = zoo.normal(1, STEPS, BATCH, zoo.IN), zoo.normal(2, STEPS, BATCH, zoo.N)

    def loss(spikes, target):
        return jnp.sum((spikes - target) ** 2)

    with brainstate.environ.context(t=0.0 * u.ms):
        learner = bt.compile(model, "d_rtrl", data[0][0], batch_size=BATCH)
        exact = bptt(model, data, loss)[1]
        learner.reset_state(BATCH, model_states=True)
        found = learner.etrace_grad(
            *data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", block_size=3
        )
    assert {path[-1] for path in found} == {"weight", *(f"{each}_param" for each in attributes)}
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(found))
    assert_tree_close(found, exact, 1e-9)
