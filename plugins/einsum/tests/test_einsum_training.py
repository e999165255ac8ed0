# SPDX-License-Identifier: Apache-2.0
"""Gradients through ``einsum`` and ``grouped_matmul``: exact where recurrence is position-wise."""

from __future__ import annotations

import math

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle, pp_prop_oracle
from braintrace_einsum import einsum, grouped_matmul
from braintrace_einsum.nn import GroupedLinear

BATCH, STEPS = 2, 6
SIZES = {"b": BATCH, "g": 2, "i": 3, "n": 2, "o": 3, "p": 2}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


class Leaky(brainstate.nn.Module):
    """Two leaky states that drive each other position by position around a contraction."""

    def __init__(self, equation, weight_fn=None, recurrent=False, batch=None):
        super().__init__()
        self.equation, self.weight_fn, self.recurrent = equation, weight_fn, recurrent
        x, weight, y = equation.replace("->", ",").split(",")
        self.x_shape, w_shape, self.shape = (
            tuple(SIZES[letter] for letter in term) for term in (x, weight, y)
        )
        self.shape = self.shape if batch is None else (batch, *self.shape)
        self.weight = brainstate.ParamState(draw(*w_shape, seed=1))

    def init_state(self, **_):
        self.v = brainstate.HiddenState(jnp.full(self.shape, 0.1))
        self.h = brainstate.HiddenState(jnp.full(self.shape, -0.2))

    def reset_state(self, **_):
        self.v.value, self.h.value = jnp.full(self.shape, 0.1), jnp.full(self.shape, -0.2)

    def product(self, x):
        return einsum(self.equation, x, self.weight.value, weight_fn=self.weight_fn)

    def update(self, x):
        v, h = self.v.value, self.h.value
        y = self.product(jnp.tanh(x + h) if self.recurrent else x)
        self.v.value = 0.6 * v * jnp.cos(0.3 * y) + y + 0.2 * h
        self.h.value = 0.7 * h + jnp.sin(self.v.value)
        return self.h.value


class Grouped(Leaky):
    """The same around a grouped product with a bias."""

    def __init__(self):
        super().__init__("bgi,gio->bgo")
        self.bias = brainstate.ParamState(draw(*self.shape[1:], seed=2))

    def product(self, x):
        return grouped_matmul(x, self.weight.value, self.bias.value, bias_fn=jnp.sin)


MODELS = {
    "dense": lambda: Leaky("bi,io->bo"),
    "groups": lambda: Leaky("bgi,oig->bog", weight_fn=jnp.tanh),
    "one_example": lambda: Leaky("gi,gio->go"),
    "positions": lambda: Leaky("bpi,io->bpo"),
    "positions_and_groups": lambda: Leaky("bpgi,gio->bgop"),
    "ellipsis": lambda: Leaky("bpgi,io->bpgo"),
    "sums": lambda: Leaky("bii,nio->bo"),
    "gain": lambda: Leaky("bgn,n->bgn"),
    "bias": Grouped,
}


def loss(out, target):
    return jnp.sum((out - target) ** 2)


def sequences(model, batch=None):
    head = (STEPS,) if batch is None else (STEPS, batch)
    return draw(*head, *model.x_shape, seed=3), draw(STEPS, *model.shape, seed=4)


def learner_of(model, x, algorithm="d_rtrl", **options):
    return braintrace.compile(model, algorithm, x, **options)


def gradient(learner, data, **options):
    learner.reset_state(model_states=True)

    def step(x, y):
        return loss(learner(x), y)

    return learner.etrace_grad(*data, step_fn=step, reduction="sum", **options)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_backpropagation(name):
    model = MODELS[name]()
    data = sequences(model)
    learner = learner_of(model, data[0][0])
    exact = bptt(model, data, loss)[1]
    for block in (1, 4, STEPS, "auto"):
        assert_tree_close(gradient(learner, data, block_size=block), exact, 1e-9)


@pytest.mark.parametrize("equation", ["bgn,ng->bgn", "bn,n->bn", "gn,n->gn"])
def test_gradients_pass_through_an_elementwise_contraction(equation):
    model = Leaky(equation, recurrent=True)
    data = sequences(model)
    learner = learner_of(model, data[0][0])
    exact = bptt(model, data, loss)[1]
    assert_tree_close(gradient(learner, data), exact, 1e-9)


def test_a_recurrent_contraction_is_cut_as_every_product():
    for equation in ("bgi,gio->bgo", "bpi,io->bpo"):
        model = Leaky(equation, recurrent=True)
        data = sequences(model)
        learner = learner_of(model, data[0][0])
        expected = d_rtrl_oracle(model, data, loss).grads
        assert_tree_close(gradient(learner, data), expected, 1e-9)


@pytest.mark.parametrize("name", ["groups", "positions", "gain", "bias"])
def test_pp_prop_follows_its_definition(name):
    model = MODELS[name]()
    data = sequences(model)
    learner = learner_of(model, data[0][0], "pp_prop", decay_or_rank=0.8)
    expected = pp_prop_oracle(model, data, loss, 0.8).grads
    assert_tree_close(gradient(learner, data), expected, 1e-9)


def test_trace_memory_is_that_of_the_weight_or_of_positions():
    for equation, entries in {"bgi,gio->bgo": "bgio", "bpi,io->bpo": "bpio"}.items():
        model = Leaky(equation)
        learner = learner_of(model, jnp.zeros(model.x_shape))
        size = 2 * math.prod(SIZES[letter] for letter in entries)
        assert sum(leaf.size for leaf in jax.tree.leaves(learner.read_traces())) == size


def test_a_layer_below_a_leaky_readout_has_its_credit():
    class Network(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.below = Leaky("bgi,gio->bgo")
            self.above = GroupedLinear(2, 3, 2, key=0)

        def init_state(self, **_):
            self.r = brainstate.HiddenState(jnp.zeros((BATCH, 2, 2)))

        def reset_state(self, **_):
            self.r.value = jnp.zeros((BATCH, 2, 2))

        def update(self, x):
            self.r.value = 0.9 * self.r.value + self.above(self.below(x))
            return self.r.value

    model = Network()
    data = draw(STEPS, *model.below.x_shape), draw(STEPS, BATCH, 2, 2)
    learner = learner_of(model, data[0][0])
    exact = bptt(model, data, loss)[1]
    assert_tree_close(gradient(learner, data), exact, 1e-9)
