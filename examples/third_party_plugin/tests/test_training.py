# SPDX-License-Identifier: Apache-2.0
"""A model of both operations is trained online, and its gradient is exact."""

import brainstate
import jax
import jax.numpy as jnp
import pytest
from grouped_products._plugin import plugin

import braintrace

STEPS, BATCH, GROUPS, IN, OUT = 8, 4, 2, 3, 2


class Model(brainstate.nn.Module):
    """A leaky layer of dendritic neurons that is driven by leaky groups."""

    def __init__(self):
        super().__init__()
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = [(GROUPS, IN, OUT), (GROUPS * OUT, 2, 1), (2, 1)]
        values = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        self.weight, self.branches, self.gains = map(brainstate.ParamState, values)

    def init_state(self, batch_size=None):
        self.g = brainstate.HiddenState(jnp.zeros((batch_size, GROUPS, OUT)))
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 1)))

    def reset_state(self, batch_size=None):
        self.g.value = jnp.zeros((batch_size, GROUPS, OUT))
        self.h.value = jnp.zeros((batch_size, 1))

    def update(self, x):
        self.g.value = 0.5 * self.g.value + braintrace.grouped_matmul(x, self.weight.value)
        drive = jnp.tanh(self.g.value).reshape(len(x), -1)
        y = braintrace.dendrites(drive, self.branches.value, self.gains.value)
        self.h.value = 0.8 * self.h.value + y
        return self.h.value


@pytest.fixture
def xs():
    return jax.random.normal(jax.random.key(1), (STEPS, BATCH, GROUPS, IN))


def test_the_model_is_trained(xs):
    learner = braintrace.compile(Model(), "d_rtrl", xs[0], batch_size=BATCH)
    assert set(learner.graph.coverage().values()) == {"trace"}
    ys = jnp.cumsum(xs[..., 0].sum(-1, keepdims=True), 0) / STEPS

    def step(x, y):
        return jnp.mean((learner(x) - y) ** 2)

    @brainstate.transform.jit
    def update():
        learner.reset_state(batch_size=BATCH, model_states=True)
        grads, losses = learner.etrace_grad(xs, ys, step_fn=step, return_value=True)
        for path, state in learner.param_states.items():
            state.value = state.value - 0.1 * grads[path]
        return losses.mean()

    losses = [float(update()) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0], losses


class Groups(brainstate.nn.Module):
    """Leaky groups alone, or grouped products of which no state depends."""

    def __init__(self, recurrent):
        super().__init__()
        weight = jax.random.normal(jax.random.key(0), (GROUPS, IN, OUT))
        self.weight, self.recurrent = brainstate.ParamState(weight), recurrent

    def init_state(self, batch_size=None):
        self.g = brainstate.HiddenState(jnp.zeros((batch_size, GROUPS, OUT)))

    def update(self, x):
        y = braintrace.grouped_matmul(x, self.weight.value)
        self.g.value = 0.5 * self.g.value + (y if self.recurrent else x.mean())
        return self.g.value if self.recurrent else y


def test_the_rule_of_the_plugin_is_exact_where_all_states_decay_alike(xs):
    def gradient(name, **options):
        learner = braintrace.compile(Groups(True), name, xs[0], batch_size=BATCH, **options)
        return learner.etrace_grad(xs, step_fn=lambda x: jnp.mean(learner(x) ** 2))["weight",]

    expected = gradient("d_rtrl")
    assert jnp.allclose(gradient("leaky_trace", decay=0.5), expected, rtol=1e-4)
    assert not jnp.allclose(gradient("leaky_trace", decay=0.9), expected, rtol=1e-2)


def test_the_plugin_finds_products_of_low_precision():
    assert plugin.braintrace_doctor(None) == ()
    with jax.default_matmul_precision("bfloat16"):
        (found,) = plugin.braintrace_doctor(None)
    assert found.id == "matmul_precision" and "bfloat16" in found.text


def test_the_plugin_explains_its_readouts(xs):
    model = Groups(False)
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    graph = braintrace.compile_etrace_graph(model, xs[0])
    said = [plugin.braintrace_explain(record) for record in graph.diagnostics]
    assert "grouped_mm is a readout here, which needs no trace: all is well" in said


def test_wrong_arguments():
    with pytest.raises(ValueError, match="weight"):
        braintrace.grouped_matmul(jnp.ones((2, 3)), jnp.ones((3, 2, 2)))
    with pytest.raises(ValueError, match="gains"):
        braintrace.dendrites(jnp.ones(3), jnp.ones((3, 2, 2)), jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="floating-point"):
        braintrace.dendrites(jnp.ones(3, int), jnp.ones((3, 2, 2)), jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="must be an array"):
        braintrace.grouped_matmul([[1.0]], jnp.ones((1, 1, 2)))
