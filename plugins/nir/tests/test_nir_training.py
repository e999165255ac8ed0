# SPDX-License-Identifier: Apache-2.0
"""Imported graphs trained online: gradients beside backpropagation and the independent oracle."""

from __future__ import annotations

from itertools import pairwise

import brainstate
import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest

import braintrace
from braintrace_nir import from_nir, to_nir
from braintrace_testing import assert_tree_close, bptt, d_rtrl_oracle

T, B, IN, N, OUT = 10, 2, 3, 4, 2
RNG = np.random.default_rng(4)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def drawn_anew():
    """Whatever tests were run before."""
    RNG.bit_generator.state = START


def draw(*shape, low=0.5, high=1.5):
    return RNG.uniform(low, high, shape)


def weights(out, into):
    return nir.Linear(RNG.normal(size=(out, into)))


def lif(n=N):
    fires = {"v_threshold": draw(n, low=0.2, high=0.4), "v_reset": draw(n, low=-0.2, high=0.1)}
    return nir.LIF(tau=draw(n, low=3, high=9), r=draw(n), v_leak=0.1 * draw(n), **fires)


def cuba(n=N):
    node = lif(n)
    tau = {"tau_syn": draw(n, low=1, high=4), "tau_mem": node.tau, "w_in": draw(n)}
    return nir.CubaLIF(**tau, r=node.r, v_leak=node.v_leak, v_threshold=node.v_threshold)


def readout(n=OUT):
    one = np.ones(n)
    return nir.LI(tau=5 * one, r=one, v_leak=0 * one)


def chain(*nodes, shape=(IN,), out=(OUT,)):
    return nir.NIRGraph.from_list(nir.Input(np.array(shape)), *nodes, nir.Output(np.array(out)))


def above(*layer):
    """A leaky readout above one layer."""
    return chain(weights(N, IN), *layer, weights(OUT, N), readout())


def recurrent(neuron):
    nodes = {"input": nir.Input(np.array([IN])), "output": nir.Output(np.array([OUT]))}
    nodes |= {"w": weights(N, IN), "lif": neuron, "w_rec": weights(N, N)}
    nodes |= {"out": weights(OUT, N), "li": readout()}
    forward = ["input", "w", "lif", "out", "li", "output"]
    edges = [*pairwise(forward), ("lif", "w_rec"), ("w_rec", "lif")]
    return nir.NIRGraph(nodes, edges)


def loss(y):
    return jnp.sin(y + 0.3).sum()


def learner_of(model, xs, **options):
    return braintrace.compile(model, "d_rtrl", xs[0], batch_size=B, **options)


def online(learner, xs):
    """The gradient in two blocks, so that a trace is carried over; the model starts anew."""
    learner.reset_state(B, model_states=True)
    grads = learner.etrace_grad(
        xs, step_fn=lambda x: loss(learner(x)), reduction="sum", block_size=T // 2
    )
    learner.reset_state(B, model_states=True)
    return grads


IMAGE = (2, 4, 4)
POOL = (np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
ONE, THREE = np.ones(N), np.array([3, 1, 2, 3])
EXACT = {
    "LIF": (lambda: chain(weights(N, IN), lif(), out=(N,)), {}),
    "CubaLIF, a leaky readout": (
        lambda: above(cuba()),
        {},
    ),
    "a soft reset": (
        lambda: above(lif()),
        {"reset": "soft"},
    ),
    "Euler": (
        lambda: above(cuba()),
        {"method": "euler"},
    ),
    "IF, biases": (
        lambda: chain(
            nir.Affine(RNG.normal(size=(N, IN)), draw(N)),
            nir.IF(r=draw(N), v_threshold=ONE),
            nir.Affine(RNG.normal(size=(OUT, N)), draw(OUT)),
            nir.CubaLI(2 * np.ones(OUT), 4 * np.ones(OUT), np.ones(OUT), np.zeros(OUT)),
        ),
        {},
    ),
    "a delay": (
        lambda: above(lif(), nir.Delay(2 * ONE)),
        {},
    ),
    "delays": (
        lambda: above(lif(), nir.Delay(THREE)),
        {},
    ),
    "fields of nodes": (
        lambda: above(cuba(), nir.Scale(draw(N))),
        {"train": ["tau_syn", "tau_mem", "w_in", "r", "v_leak", "v_threshold", "v_reset"]},
    ),
    "a scale": (lambda: above(nir.Scale(draw(N)), lif()), {"train": ["scale"]}),
    "images": (
        lambda: chain(
            nir.Conv2d(None, RNG.normal(size=(2, 2, 3, 3)), 1, 1, 1, 1, draw(2)),
            nir.IF(r=draw(2, 4, 4), v_threshold=np.ones((2, 4, 4))),
            nir.SumPool2d(*POOL),
            nir.Flatten(None, 0),
            nir.Affine(RNG.normal(size=(OUT, 8)), draw(OUT)),
            readout(),
            shape=IMAGE,
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_one_layer_below_a_leaky_readout_is_exact(name):
    """D-RTRL equals backpropagation through time: resets, delays and trained constants too."""
    make, options = EXACT[name]
    model = from_nir(make(), dt=1, **options)
    xs = jnp.asarray(draw(T, B, *(IMAGE if name == "images" else (IN,)), low=-1, high=2))
    found = online(learner_of(model, xs), xs)
    expected = bptt(model, (xs,), loss)[1]
    assert_tree_close(found, expected, rtol=1e-9)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))


def test_a_stack_is_exact_where_that_is_asked_for():
    graph = above(lif(), weights(N, N), lif())
    model, xs = from_nir(graph, dt=1), jnp.asarray(draw(T, B, IN, low=-1, high=5))
    found = online(learner_of(model, xs, downstream="exact"), xs)
    assert_tree_close(found, bptt(model, (xs,), loss)[1], rtol=1e-9)


def test_a_recurrent_graph_has_the_gradient_of_the_rule_and_learns():
    model = from_nir(recurrent(cuba()), dt=1)
    xs = jnp.asarray(draw(T, B, IN, low=-1, high=2))
    learner = learner_of(model, xs)
    found = online(learner, xs)
    expected = d_rtrl_oracle(model, (xs,), loss, uniform=learner.graph.uniform).grads
    assert_tree_close(found, expected, rtol=1e-9)
    target = jnp.asarray(draw(OUT, low=-0.5, high=0.5))

    def error(x):
        return ((learner(x) - target) ** 2).mean()

    parameters = model.states(brainstate.ParamState)
    errors = []
    for _ in range(25):
        learner.reset_state(B, model_states=True)
        grads, losses = learner.etrace_grad(xs, step_fn=error, return_value=True)
        errors.append(float(jnp.mean(losses)))
        for path, state in parameters.items():
            state.value = jax.tree.map(lambda w, g: w - 3 * g, state.value, grads[path])
    assert errors[-1] < 0.5 * errors[0]
    again = from_nir(to_nir(model), dt=1)
    for each in (again, model):
        brainstate.nn.init_all_states(each, batch_size=B)
    for x in xs:
        np.testing.assert_array_equal(again(x), model(x))
