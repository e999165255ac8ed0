# SPDX-License-Identifier: Apache-2.0
"""Normalisation: the numbers of ``brainstate.nn``, and exact gradients of scale and bias."""

from __future__ import annotations

import inspect

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace.testing import assert_tree_close, bptt
from braintrace_elemwise import nn

STEPS, BATCH, N = 6, 3, 4
LAYERS = {
    "LayerNorm": ((N,), {}),
    "LayerNorm_two_axes": ((3, N), {"feature_axes": (0, 1), "reduction_axes": (1, 2)}),
    "LayerNorm_scale": ((3, N), {"use_bias": False}),
    "RMSNorm": ((N,), {}),
    "GroupNorm": ((N,), {"num_groups": 2}),
    **{f"BatchNorm{n}d": ((*(2,) * n, N), {}) for n in range(4)},
}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def pair(name):
    """The layer and that of ``brainstate``, with the same parameters."""
    size, options = LAYERS[name]
    own, theirs = (getattr(m, name.partition("_")[0])(size, **options) for m in (nn, brainstate.nn))
    for a, b in zip(parameters(own), parameters(theirs), strict=True):
        a.value = jax.tree.map(lambda v: v + 0.3 * draw(*v.shape, seed=1), a.value)
        b.value = a.value
    return own, theirs


def parameters(layer):
    return list(layer.states(brainstate.ParamState).values())


class Cell(brainstate.nn.Module):
    """Two leaky states behind a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.shape = layer, (BATCH, *layer.in_size)

    def init_state(self, **_):
        self.v = brainstate.HiddenState(jnp.full(self.shape, 0.1))
        self.h = brainstate.HiddenState(jnp.full(self.shape, 0.2))

    def reset_state(self, **_):
        self.v.value, self.h.value = jnp.full(self.shape, 0.1), jnp.full(self.shape, 0.2)

    def update(self, x):
        y = self.layer(x)
        self.v.value = 0.6 * self.v.value * jnp.cos(y) + y + 0.2 * self.h.value
        self.h.value = 0.7 * self.h.value + jnp.sin(self.v.value)
        return self.h.value


def loss(h, target):
    return jnp.sum((h - target) ** 2)


@pytest.mark.parametrize("name", LAYERS)
def test_scale_and_bias_have_the_gradient_of_backpropagation(name):
    layer, theirs = pair(name)
    size = layer.in_size
    data = draw(STEPS, BATCH, *size), draw(STEPS, BATCH, *size, seed=2)
    for fit in (True, False):
        with brainstate.environ.context(fit=fit):
            np.testing.assert_array_equal(layer(data[0][0]), theirs(data[0][0]))
    model = Cell(layer)
    with brainstate.environ.context(fit=False):
        learner = braintrace.compile(model, "d_rtrl", data[0][0])
        exact = bptt(model, data, loss)[1]
        assert set(learner.graph.coverage().values()) == {"trace"}

        def step(x, y):
            return loss(learner(x), y)

        for block in (1, 4, "auto"):
            learner.reset_state(model_states=True)
            found = learner.etrace_grad(*data, step_fn=step, reduction="sum", block_size=block)
            assert_tree_close(found, exact, 1e-9)


@pytest.mark.parametrize("name", sorted({name.partition("_")[0] for name in LAYERS}))
def test_signatures_are_those_of_brainstate_but_for_the_class_of_parameters(name):
    own, theirs = (inspect.signature(getattr(m, name).__init__) for m in (nn, brainstate.nn))
    assert [*own.parameters] == [*theirs.parameters]
    other = [k for k, p in own.parameters.items() if p.default != theirs.parameters[k].default]
    assert other == ["param_type"]
    assert getattr(braintrace.nn, name) is getattr(nn, name)


def test_a_class_of_ones_own_and_no_parameters_at_all():
    class Doubled(brainstate.ParamState):
        def execute(self, x):
            return 2 * x

    x = draw(2, N)
    plain = nn.LayerNorm((N,), use_bias=False, use_scale=False)
    assert plain.weight is None
    doubled = nn.LayerNorm((N,), param_type=Doubled)
    np.testing.assert_allclose(doubled(x), 2 * plain(x), rtol=1e-12)
    with pytest.raises(ValueError, match="Invalid axis"):
        nn.RMSNorm((N,), feature_axes=3)
