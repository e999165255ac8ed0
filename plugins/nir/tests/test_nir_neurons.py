# SPDX-License-Identifier: Apache-2.0
"""Neurons against the equations of NIR, integrated in thousands of small steps with numpy."""

from __future__ import annotations

import doctest
from importlib import import_module

import brainstate
import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest

from braintrace_nir import Neuron, fast_sigmoid
from braintrace_nir._neurons import spike

DT, STEPS, N = 0.002, 12, 3
RNG = np.random.default_rng(0)


def between(low, high):
    return RNG.uniform(low, high, N)


def fires(node):
    return hasattr(node, "v_threshold")


TAU = between(0.004, 0.02)
FIRES = {"v_threshold": between(0.3, 0.5), "v_reset": between(-0.3, 0.1)}
LEAK = {"r": between(1, 2), "v_leak": between(-0.1, 0.1)}
CUBA = {"tau_syn": between(0.001, 0.01), "tau_mem": TAU, "w_in": between(1, 3), **LEAK}
NODES = {
    "I": nir.I(r=between(20, 40)),
    "IF": nir.IF(r=between(60, 90), **FIRES),
    "LI": nir.LI(tau=TAU, **LEAK),
    "LIF": nir.LIF(tau=TAU, **LEAK, **FIRES),
    "CubaLI": nir.CubaLI(**CUBA),
    "CubaLIF": nir.CubaLIF(**CUBA, **FIRES),
    "equal time constants": nir.CubaLIF(**{**CUBA, "tau_syn": TAU}, **FIRES),
    "nearly equal ones": nir.CubaLI(**{**CUBA, "tau_syn": TAU * (1 + 1e-9)}),
    "one value for all": nir.LIF(np.full(N, 0.01), *np.ones((2, N)) * [[1], [0]], np.full(N, 0.3)),
}
INPUTS = RNG.uniform(-0.5, 2.5, (STEPS, 2, N))


def derivative(node, x, v, i):
    """The two equations of NIR's documentation."""
    if hasattr(node, "w_in"):
        change = (-i + node.w_in * x) / node.tau_syn
        return (node.v_leak - v + node.r * i) / node.tau_mem, change
    if hasattr(node, "tau"):
        return (node.v_leak - v + node.r * x) / node.tau, 0 * v
    return node.r * x, 0 * v


def integrated(node, inputs, substeps=200):
    """Potentials at the ends of steps, before the reset, and what the neurons give."""
    h = DT / substeps
    v = np.broadcast_to(getattr(node, "v_leak", np.zeros(N)), inputs.shape[1:])
    i = np.zeros(inputs.shape[1:])
    potentials, outputs = [], []
    for x in inputs:
        for _ in range(substeps):  # Runge-Kutta of fourth order
            a, p = derivative(node, x, v, i)
            b, q = derivative(node, x, v + h / 2 * a, i + h / 2 * p)
            c, r = derivative(node, x, v + h / 2 * b, i + h / 2 * q)
            d, s = derivative(node, x, v + h * c, i + h * r)
            v, i = v + h / 6 * (a + 2 * b + 2 * c + d), i + h / 6 * (p + 2 * q + 2 * r + s)
        potentials.append(v)
        z = v > node.v_threshold if fires(node) else v
        v = np.where(z, node.v_reset, v) if fires(node) else v
        outputs.append(z)
    return np.array(potentials), np.array(outputs)


def run(neuron, inputs, batch=2):
    neuron.init_state(batch)
    outputs, potentials = [], []
    for x in jnp.asarray(inputs):
        outputs.append(neuron(x))
        potentials.append(neuron.v.value)
    return np.array(potentials), np.array(outputs)


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize("name", NODES)
def test_a_step_is_the_solution_of_the_equations(name):
    node = NODES[name]
    expected = integrated(node, INPUTS)
    found = run(Neuron(node, dt=DT), INPUTS)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-11)
    if fires(node):
        assert 0.05 < found[1].mean() < 0.95
    alone = run(Neuron(node, dt=DT), INPUTS[:3, 0], batch=None)
    np.testing.assert_allclose(alone[0], expected[0][:3, 0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["IF", "LIF", "CubaLIF"])
def test_forward_euler_and_a_soft_reset_are_what_they_say(name):
    node = NODES[name]
    v, i = np.zeros((2, N)) + getattr(node, "v_leak", 0), np.zeros((2, N))
    neuron = Neuron(node, dt=DT, method="euler", reset="soft")
    potentials, outputs = run(neuron, INPUTS)
    for x, potential, output in zip(INPUTS, potentials, outputs, strict=True):
        dv, di = derivative(node, x, v, i)
        v, i = v + DT * dv, i + DT * di
        np.testing.assert_allclose(potential, v, rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(output, v > node.v_threshold)
        v = v - (v > node.v_threshold) * (node.v_threshold - node.v_reset)
    assert outputs.any()


def test_a_spike_is_above_the_threshold_with_the_derivative_that_was_chosen():
    one = np.ones(1)
    for surrogate, slope in ((fast_sigmoid, 1.0), (jnp.sin, 1.0), (lambda d: 3 * d, 3.0)):
        neuron = Neuron(nir.IF(r=one, v_threshold=one), dt=1, surrogate=surrogate)

        def spikes(x, neuron=neuron):
            neuron.init_state()
            return neuron(x)[0]

        assert [float(spikes(jnp.full(1, x))) for x in (0.9, 1.0, 1.1)] == [0, 0, 1]
        many = spike(jnp.arange(-500, 501, dtype=jnp.float32) / 500, surrogate)
        assert {*many.tolist()} == {0.0, 1.0} and many.sum() == 500
        assert jax.grad(spikes)(jnp.ones(1)) == slope


def test_where_neurons_begin():
    """At rest; but not above the threshold, which no neuron is after a spike."""
    three = np.ones(3)
    node = nir.LIF(
        tau=three, r=three, v_leak=np.array([0.2, 2, 0]), v_threshold=three, v_reset=-three
    )
    neuron = Neuron(node, dt=0.1)
    neuron.init_state(2)
    assert neuron.v.value[1].tolist() == [0.2, -1, 0] and not neuron.output().any()
    neuron(jnp.ones((2, 3)))
    neuron.reset_state(2)
    assert neuron.v.value[1].tolist() == [0.2, -1, 0]
    trained = Neuron(node, dt=0.1, train=["v_leak"])
    trained.init_state(2)
    trained.v_leak.value = trained.v_leak.value + 0.5
    brainstate.transform.jit(lambda: trained.reset_state(2))()
    assert trained.v.value[1].tolist() == [0.7, -1, 0.5]


def test_what_is_refused():
    one = np.ones(2)
    lif = nir.LIF(tau=one, r=one, v_leak=one, v_threshold=one)
    with pytest.raises(ValueError, match="tau must be positive everywhere, got"):
        Neuron(nir.LI(tau=0 * one, r=one, v_leak=one), dt=0.1)
    for wrong in ({"reset": "none"}, {"method": "exponential"}):
        with pytest.raises(ValueError, match="reset must be 'hard' or 'soft' and method 'exact'"):
            Neuron(lif, dt=0.1, **wrong)
    with pytest.raises(ValueError, match="dt must be positive, got 0"):
        Neuron(lif, dt=0)
    with pytest.raises(TypeError, match="node must be one of I, IF, .*, got Linear"):
        Neuron(nir.Linear(weight=np.ones((2, 2))), dt=0.1)


@pytest.mark.parametrize("module", ["_neurons", "_network", "_export"])
def test_examples_in_docstrings(module):
    results = doctest.testmod(import_module(f"braintrace_nir.{module}"))
    assert results.attempted and not results.failed
