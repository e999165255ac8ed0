# SPDX-License-Identifier: Apache-2.0
"""A trace of several states that is written over itself is the trace."""

from __future__ import annotations

import re
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from braintrace.algorithms import Block, ParamDimRule
from braintrace.algorithms.in_place import after
from braintrace.testing import assert_tree_close
from tests import zoo

pytestmark = pytest.mark.filterwarnings("ignore:step_fn .* is a new function:UserWarning")

T, B, UNITS = 5, 2, 4
RATE = optax.sgd(0.1)


class Leak(brainstate.nn.Module):
    """A product and a leak."""

    def __init__(self, inputs: int = UNITS) -> None:
        super().__init__()
        self.product = bt.nn.Linear(inputs, 2)

    def init_state(self, batch_size: int) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, 2)))

    def update(self, x: Any) -> Any:
        self.v.value = 0.8 * self.v.value + self.product(x)
        return self.v.value


class Adaptive(brainstate.nn.Module):
    """Neurons of two states, each of which the other reads; what is read is the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.product = bt.nn.Linear(zoo.IN, UNITS)

    def init_state(self, batch_size: int) -> None:
        zeros = jnp.zeros((batch_size, UNITS))
        self.v, self.a = brainstate.HiddenState(zeros), brainstate.HiddenState(zeros)

    def update(self, x: Any) -> Any:
        v, a = self.v.value, self.a.value
        self.v.value = 0.9 * v - 0.3 * a * v + self.product(x)
        self.a.value = 0.8 * a + jnp.tanh(v)
        return v


CELLS = {
    "gru": lambda: bt.nn.GRUCell(zoo.IN, UNITS),
    "lstm": lambda: bt.nn.LSTMCell(zoo.IN, UNITS),  # whose trace lags behind
    "adaptive": Adaptive,
}


def learner_of(cell: str) -> Any:
    brainstate.random.seed(0)
    model = brainstate.nn.Sequential(CELLS[cell](), Leak())
    x = jnp.zeros((B, zoo.IN))
    return bt.compile(model, "d_rtrl", x, batch_size=B, downstream="linear")


def updated(learner: Any, *data: Any) -> Any:
    return learner.etrace_update(
        *data, step_fn=lambda x, y: ((learner(x) - y) ** 2).mean(), optimizer=RATE
    )


@pytest.mark.parametrize("cell", CELLS)
def test_updates_of_one_call_are_those_of_many(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    advance = ParamDimRule.advance

    def recorded(self: Any, traces: Any, block: Block, operands: Any) -> Any:
        heard.append((block.heard, [isinstance(v, tuple) for v in traces[0].values()]))
        return advance(self, traces, block, operands)

    monkeypatch.setattr(ParamDimRule, "advance", recorded)
    xs, ys = (brainstate.random.randn(T, B, n) for n in (zoo.IN, 2))
    one, many = learner_of(cell), learner_of(cell)
    losses = updated(one, xs, ys)
    expected = jnp.concatenate([updated(many, xs[t : t + 1], ys[t : t + 1]) for t in range(T)])
    assert_tree_close(losses, expected, 1e-12)
    assert_tree_close(one.read_traces(), many.read_traces(), 1e-12)
    for a, b in zip(one.param_states.values(), many.param_states.values(), strict=True):
        assert_tree_close(a.value, b.value, 1e-12)
    if cell == "gru":
        (first, parted), *_ = heard
        assert all(parted) and first is not None and first[0] == (False, True)
        assert not any(heard[-1][1])  # a single update takes the traces as they are
    shapes = [v.shape for v in one.get_etrace_of(next(iter(one.rule.traced_paths)))[0].values()]
    assert all(shape[-1] > 1 for shape in shapes)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts kernels of processors")
@pytest.mark.parametrize("states", [1, 2])
def test_a_call_writes_every_state_of_a_trace_once_a_step(states: int) -> None:
    above = [] if states == 1 else [Leak(64)]
    model = brainstate.nn.Sequential(bt.nn.GRUCell(zoo.IN, 64), *above)
    learner = bt.compile(model, "d_rtrl", jnp.zeros((B, zoo.IN)), batch_size=B)
    xs, ys = jnp.ones((T, B, zoo.IN)), jnp.ones((T, B, 1))

    def step(x: Any, y: Any) -> Any:
        return ((learner(x) - y) ** 2).mean()

    def update() -> None:
        learner.etrace_update(xs, ys, step_fn=step, optimizer=RATE)

    update()
    driver = learner._drivers._kept[-1][2]
    program, texts = driver.donated, []

    def read(*args: Any) -> Any:
        texts.append(program.lower(*args).compile().as_text())
        return program(*args)

    driver.donated = read
    update()
    shape = ",".join(map(str, (B, zoo.IN + 64, 64)))
    arrays = rf"= \S+\[(?:1,)?{shape}\]\S* (fusion|copy|concatenate|slice)\("
    assert re.findall(arrays, texts[0]) == ["fusion"] * 2 * states  # of two weights


def test_traces_can_be_asked_for_between_updates() -> None:
    learner = learner_of("gru")
    seen = []

    def step(x: Any, y: Any) -> Any:
        loss = ((learner(x) - y) ** 2).mean()
        (trace,) = learner.get_etrace_of(("layers", 0, "Wz", "weight"))
        seen.append({key: leaf.shape for key, leaf in trace.items()})
        return loss

    xs, ys = jnp.ones((3, B, zoo.IN)), jnp.ones((3, B, 2))
    learner.etrace_update(xs, ys, step_fn=step, optimizer=RATE)
    learner.etrace_update(xs, ys, step_fn=step, optimizer=RATE, check="skip")
    assert seen[0] == {"weight": (B, zoo.IN + UNITS, UNITS, 2), "bias": (B, UNITS, 2)}


def test_what_comes_after_a_number_is_as_it_was() -> None:
    values, first = jnp.arange(3.0), {"a": jnp.zeros((2, 2))}
    np.testing.assert_array_equal(jax.jit(after)(values, first), values)
    np.testing.assert_allclose(after(values, {"a": jnp.full(2, jnp.nan)}), values, rtol=1e-15)


def test_weights_without_elements_order_nothing() -> None:
    values, empty = {"a": jnp.ones(2)}, jnp.zeros((0, 3))
    assert after(values, {"w": empty}) is values
    np.testing.assert_array_equal(after(values, {"b": empty, "w": jnp.ones(1)})["a"], 1)
