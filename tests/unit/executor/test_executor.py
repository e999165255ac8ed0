# SPDX-License-Identifier: Apache-2.0
"""One step with its Jacobians, derived by hand."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.executor.executor import Executor
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

X = np.linspace(-1, 1, 2 * IN).reshape(2, IN)
W, H = ("w",), ("h",)


class Chained(zoo.Leaky):
    """h <- tanh(0.8 h + x |w|), y = h**2; the operand is made from the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.out = weight(HIDDEN, 2)

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, jnp.abs(self.w.value))
        self.h.value = jnp.tanh(0.8 * self.h.value + drive)
        return bt.matmul(self.h.value, self.out.value)


@pytest.fixture
def made() -> Any:
    """An executor and the values of its states."""
    model = Chained()
    brainstate.nn.init_all_states(model, batch_size=2)
    graph = bt.compile_etrace_graph(model, X)
    return Executor(graph), {s.path: s.state.value for s in graph.module_info.slots}


def new_h(states: Any) -> Any:
    return np.tanh(0.8 * states[H] + X @ np.abs(states[W]))


def test_a_step_and_its_jacobians(made: Any) -> None:
    executor, states = made
    out, new, values = executor.run([X], states)
    h = new_h(states)
    np.testing.assert_allclose(new[H], h, rtol=1e-10)
    np.testing.assert_allclose(out, h @ states["out",], rtol=1e-10)
    assert {*new} == {*states} and jnp.array_equal(new[W], states[W])
    found = executor.jacobians_at(values)
    slope = 1 - h**2
    np.testing.assert_allclose(found.x[0], X)
    np.testing.assert_allclose(found.f[0], slope[None], rtol=1e-10)
    np.testing.assert_allclose(found.transition[0], 0.8 * slope[None, None], rtol=1e-10)
    plain = executor.run_plain([X], states)
    np.testing.assert_allclose(plain[0], out, rtol=1e-12)
    np.testing.assert_allclose(plain[2][0], values[0], rtol=1e-12)


def test_types_of_jacobians_without_tracing_them(made: Any) -> None:
    executor, states = made
    _, _, values = executor.run([X], states)
    found = jax.tree.map(lambda v: (v.shape, v.dtype.name), executor.jacobians_at(values))
    types = jax.tree.map(lambda v: (v.shape, v.dtype.name), executor.jacobian_types)
    assert found == types


def test_perturbations_are_added_to_new_values_and_are_the_signals(made: Any) -> None:
    executor, states = made

    def loss(perturb: Any) -> Any:
        out, new, _ = executor.run([X], states, [perturb])
        return out.sum(), new[H]

    (gradient, h) = jax.grad(loss, has_aux=True)(jnp.full((2, HIDDEN), 0.5))
    np.testing.assert_allclose(h, new_h(states) + 0.5, rtol=1e-10)
    expected = np.broadcast_to(np.asarray(states["out",]).sum(1), (2, HIDDEN))
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    (signal,) = executor.signals([gradient])
    assert signal.shape == (1, 2, HIDDEN) and jnp.array_equal(signal[0], gradient)
    assert executor.old_signals({H: gradient}, ()) == (None,)


def test_operands_from_parameters_and_gradients_back(made: Any) -> None:
    executor, states = made
    params = {path: states[path] for path in (W, ("out",))}
    ((x, operand),) = executor.operand_values(params)
    assert x is None
    np.testing.assert_allclose(operand, np.abs(states[W]), rtol=1e-12)
    cotangent = np.arange(float(IN * HIDDEN)).reshape(IN, HIDDEN)
    found = executor.param_gradients(params, [{"weight": jnp.asarray(cotangent)}])
    assert {*found} == {W}  # the readout has no trace
    np.testing.assert_allclose(found[W], cotangent * np.sign(states[W]), rtol=1e-12)


def test_addresses_of_weights_and_links(made: Any) -> None:
    executor, _ = made
    model = executor.graph.module_info.compiled_model_states
    found = {weight.path: weight.links for weight in executor.weights.values()}
    assert found == {W: (0,), ("out",): ()}
    assert executor.weights[model[W]].path == W
    (link,) = executor.links
    assert executor.driven == executor.groups == (link.group,)
    assert executor.passing(0) == ((True,),) and executor.driving(0) == (True,)
    assert executor.sources == {0: 0}


class Shared(zoo.Leaky):
    """Two operations with one input."""

    def __init__(self) -> None:
        super().__init__()
        self.u = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value) * bt.matmul(x, self.u.value)
        self.h.value = 0.8 * self.h.value + y
        return self.h.value


def test_relations_with_the_same_input_share_it() -> None:
    model = Shared()
    brainstate.nn.init_all_states(model, batch_size=2)
    assert Executor(bt.compile_etrace_graph(model, X)).sources == {0: 0, 1: 0}
