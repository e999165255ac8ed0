# SPDX-License-Identifier: Apache-2.0
"""A model of both operations is trained online, and its gradient is exact."""

import brainstate
import jax
import jax.numpy as jnp
import pytest
from receptive_fields._plugin import plugin

import braintrace

STEPS, BATCH, IN, FIELDS = 8, 4, 2, 3


class Model(brainstate.nn.Module):
    """A leaky layer of dendritic neurons that is driven by leaky tuned ones."""

    def __init__(self):
        super().__init__()
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = [(IN, FIELDS), (IN * FIELDS, 2, 1), (2, 1)]
        values = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        self.centres, self.branches, self.gains = map(brainstate.ParamState, values)
        self.widths = brainstate.ParamState(jnp.ones((IN, FIELDS)))

    def init_state(self, batch_size=None):
        self.g = brainstate.HiddenState(jnp.zeros((batch_size, IN, FIELDS)))
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 1)))

    def reset_state(self, batch_size=None):
        self.g.value = jnp.zeros((batch_size, IN, FIELDS))
        self.h.value = jnp.zeros((batch_size, 1))

    def update(self, x):
        tuned = braintrace.receptive_fields(x, self.centres.value, self.widths.value)
        self.g.value = 0.5 * self.g.value + tuned
        drive = jnp.tanh(self.g.value).reshape(len(x), -1)
        y = braintrace.dendrites(drive, self.branches.value, self.gains.value)
        self.h.value = 0.8 * self.h.value + y
        return self.h.value


@pytest.fixture
def xs():
    return jax.random.normal(jax.random.key(1), (STEPS, BATCH, IN))


def test_the_model_is_trained(xs):
    learner = braintrace.compile(Model(), "d_rtrl", xs[0], batch_size=BATCH)
    assert set(learner.graph.coverage().values()) == {"trace"}
    ys = jnp.cumsum(xs.sum(-1, keepdims=True), 0) / STEPS

    def step(x, y):
        return jnp.mean((learner(x) - y) ** 2)

    @brainstate.transform.jit
    def update():
        learner.reset_state(batch_size=BATCH, model_states=True)
        grads, losses = learner.etrace_grad(xs, ys, step_fn=step, return_value=True)
        for path, state in learner.param_states.items():
            state.value = state.value - 0.01 * grads[path]
        return losses.mean()

    losses = [float(update()) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0], losses


class Fields(brainstate.nn.Module):
    """Leaky fields alone, or fields on which no state depends."""

    def __init__(self, recurrent):
        super().__init__()
        centres = jax.random.normal(jax.random.key(0), (IN, FIELDS))
        self.centres, self.recurrent = brainstate.ParamState(centres), recurrent

    def init_state(self, batch_size=None):
        self.g = brainstate.HiddenState(jnp.zeros((batch_size, IN, FIELDS)))

    def update(self, x):
        y = braintrace.receptive_fields(x, self.centres.value, jnp.ones((IN, FIELDS)))
        self.g.value = 0.5 * self.g.value + (y if self.recurrent else x.mean())
        return self.g.value if self.recurrent else y


def test_the_rule_of_the_plugin_is_exact_where_all_states_decay_alike(xs):
    def gradient(name, **options):
        learner = braintrace.compile(Fields(True), name, xs[0], batch_size=BATCH, **options)
        return learner.etrace_grad(xs, step_fn=lambda x: jnp.mean(learner(x) ** 2))["centres",]

    expected = gradient("d_rtrl")
    assert jnp.allclose(gradient("leaky_trace", decay=0.5), expected, rtol=1e-4)
    assert not jnp.allclose(gradient("leaky_trace", decay=0.9), expected, rtol=1e-2)


def test_the_plugin_finds_products_of_low_precision():
    assert plugin.braintrace_doctor(None) == ()
    with jax.default_matmul_precision("bfloat16"):
        (found,) = plugin.braintrace_doctor(None)
    assert found.id == "matmul_precision" and "bfloat16" in found.text


def test_the_plugin_explains_its_readouts(xs):
    model = Fields(False)
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    graph = braintrace.compile_etrace_graph(model, xs[0])
    said = [plugin.braintrace_explain(record) for record in graph.diagnostics]
    assert "receptive_fields_batched is a readout here, which needs no trace: all is well" in said


def test_wrong_arguments():
    with pytest.raises(ValueError, match="centres"):
        braintrace.receptive_fields(jnp.ones((2, 3)), jnp.ones((2, 2)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="gains"):
        braintrace.dendrites(jnp.ones(3), jnp.ones((3, 2, 2)), jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="floating-point"):
        braintrace.dendrites(jnp.ones(3, int), jnp.ones((3, 2, 2)), jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="must be an array"):
        braintrace.receptive_fields([1.0], jnp.ones((1, 2)), jnp.ones((1, 2)))
