# SPDX-License-Identifier: Apache-2.0
"""The same leak in six spellings, above every kind of layer that credit has to pass: BPTT.

A network has one readout for each spelling, so that a leak that is not seen in one of them takes
credit from the layer below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt

from .test_downstream import (
    BELOW,
    IN,
    WIDTH,
    Layer,
    Scaled,
    ThirdParty,
    learner_of,
    loss_of,
    started,
)

OUT, STEPS, BATCH = 2, 5, 2
#: ``v' = keep v + take y``, of the factors and a time step.
Leak = Callable[[Any, Any, Any, Any], Any]
LEAKS: dict[str, Leak] = {
    "literal": lambda v, y, keep, take: keep * v + take * y,
    "exponential": lambda v, y, keep, take: jnp.exp(-0.1 / (-0.1 / jnp.log(keep))) * v + take * y,
    "relaxation": lambda v, y, keep, take: v + (take / (1 - keep) * y - v) / (1 / (1 - keep)),
    "inside jit": lambda v, y, keep, take: jax.jit(lambda v, y: keep * v + take * y)(v, y),
}
SPELLINGS = *LEAKS, "two modules", "third party"
KEEP, TAKE = 0.8, 0.3


def spelled(name: str) -> Leak:
    return LEAKS.get(name, LEAKS["literal"])


def product(name: str, inputs: int, outputs: int) -> Any:
    return ThirdParty(inputs, outputs) if name == "third party" else None


def readout(name: str, keep: Any = KEEP, take: Any = TAKE, inputs: int = WIDTH) -> Any:
    """A leaky readout in one module, or a product and a leak."""

    def step(s: Any, x: Any) -> Any:
        s.v.value = spelled(name)(s.v.value, s.w(x), keep, take)
        return s.v.value

    if name != "two modules":
        return [Layer(step, inputs, OUT, product=product(name, inputs, OUT))]
    leak = Layer(step, shape=(OUT,), product=Scaled(lambda x: x))
    return [bt.nn.Linear(inputs, OUT), leak]


def counter(name: str) -> Any:
    """The sum of what comes: a leak of one."""

    def step(s: Any, x: Any) -> Any:
        v, y = s.v.value, s.w(x)
        ways = {"exponential": lambda: jnp.exp(-0.1 / jnp.inf) * v + y, "relaxation": lambda: y + v}
        s.v.value = ways.get(name, lambda: spelled(name)(v, y, 1.0, 1.0))()
        return s.v.value

    if name != "two modules":
        return [Layer(step, WIDTH, OUT, product=product(name, WIDTH, OUT))]
    return [bt.nn.Linear(WIDTH, OUT), Layer(step, shape=(OUT,), product=Scaled(lambda x: x))]


class Synapses(brainstate.nn.Module):
    """A current in mA that decays, and a potential in mV that follows it."""

    def __init__(self, spelling: str, w: Any) -> None:
        super().__init__()
        self.spelling, self.w = spelling, w

    def init_state(self, batch_size: int, **_: Any) -> None:
        start = jnp.zeros((batch_size, OUT))
        self.i, self.v = brainstate.HiddenState(start * u.mA), brainstate.HiddenState(start * u.mV)

    def update(self, x: Any) -> Any:
        leak, dt, tau = spelled(self.spelling), 0.5 * u.ms, 4.0 * u.ms
        self.i.value = leak(self.i.value, self.w(x) * u.mA, 0.6, 1.0)
        drive = (self.i.value * (2.0 * u.ohm)).to(u.mV)
        if self.spelling == "relaxation":
            self.v.value = self.v.value + (drive - self.v.value) * (dt / tau)
        else:
            self.v.value = leak(self.v.value, drive, 1 - dt / tau, dt / tau)
        return self.v.value / u.mV


def synapses(name: str) -> Any:
    w = product(name, WIDTH, OUT) or bt.nn.Linear(WIDTH, OUT)
    if name == "two modules":
        return [w, Synapses(name, Scaled(lambda x: x))]
    return [Synapses(name, w)]


def gated_decay(s: Any, x: Any) -> Any:
    """Each unit has a decay of its own, which is trained."""
    s.v.value = bt.element_wise(s.decay.value, jax.nn.sigmoid) * s.v.value + s.w(x)
    return jnp.tanh(s.v.value)


def with_decay() -> Any:
    layer = Layer(gated_decay)
    layer.decay = brainstate.ParamState(jnp.linspace(-0.5, 1.5, WIDTH))
    return layer


def pooled(x: Any) -> Any:
    return x.reshape(*x.shape[:-1], 2, 2).mean(-1)


def chain(name: str) -> Any:
    def inner(s: Any, x: Any) -> Any:
        s.v.value = spelled(name)(s.v.value, s.w(x), 0.6, 0.5)
        return s.v.value

    return [Layer(inner, WIDTH, 3), *readout(name, inputs=3)]


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[str], Any]]] = {
    "soft reset": (BELOW["soft reset"], readout),
    "hard reset": (BELOW["hard reset"], readout),
    "current": (BELOW["current"], readout),
    "linear recurrent unit": (with_decay, readout),
    "two constants": (
        BELOW["hard reset"],
        lambda name: readout(name, np.asarray([0.5, 0.9]), np.asarray([0.5, 0.1])),
    ),
    "pooling": (BELOW["hard reset"], lambda name: [Scaled(pooled), *readout(name, inputs=2)]),
    "chain": (BELOW["hard reset"], chain),
    "double exponential with units": (BELOW["hard reset"], synapses),
    "spike counter": (BELOW["hard reset"], counter),
}


class Network(brainstate.nn.Module):
    """A layer, and a readout for each spelling."""

    def __init__(self, low: Any, readouts: list[Any]) -> None:
        super().__init__()
        self.low = low
        self.readouts = [brainstate.nn.Sequential(*layers) for layers in readouts]

    def update(self, x: Any) -> Any:
        z = self.low(x)
        return jnp.concatenate([up(z) for up in self.readouts], -1)


@pytest.mark.parametrize("name", NETWORKS)
def test_six_spellings(name: str) -> None:
    low, up = NETWORKS[name]
    brainstate.random.seed(0)
    model = started(Network(low(), [up(spelling) for spelling in SPELLINGS]), BATCH)
    for state in model.states(brainstate.ParamState).values():
        state.value = jax.tree.map(
            lambda v: 1.5 * v + 0.2 * brainstate.random.randn(*v.shape), state.value
        )
    random = np.random.default_rng(1)
    xs = 2 * random.standard_normal((STEPS, BATCH, IN))
    ys = random.standard_normal((STEPS, BATCH, OUT * len(SPELLINGS)))
    learner = learner_of(model, xs[0])
    above = [path for path in learner.hidden_states if path[0] == "readouts"]
    assert above and not {*above} - {*learner.graph.uniform}, learner.graph.not_uniform

    def step(x: Any, *rest: Any) -> Any:
        return loss_of(learner(x), *rest)

    for weights in (np.ones(STEPS), np.arange(STEPS) == STEPS - 1.0):
        sequences = xs, ys, weights
        learner.reset_state(BATCH)
        brainstate.nn.init_all_states(model, batch_size=BATCH)
        _, exact = bptt(model, sequences, loss_of)
        found = learner.etrace_grad(*sequences, step_fn=step, reduction="sum", block_size=3)
        assert_tree_close(found, exact)


class OneModule(brainstate.nn.Module):
    """The states and parameters of other modules, started, as its own."""

    def __init__(self, *models: Any) -> None:
        super().__init__()
        self.run = lambda x: jnp.concatenate([model(x) for model in models], -1)
        for k, model in enumerate(models):
            for path, state in brainstate.graph.states(model).items():
                setattr(self, "_".join(map(str, (k, *path))), state)

    def update(self, x: Any) -> Any:
        return self.run(x)


def test_in_one_module() -> None:
    """Networks side by side, each with one readout."""
    brainstate.random.seed(0)
    models = [
        started(brainstate.nn.Sequential(NETWORKS[name][0](), *NETWORKS[name][1]("literal")), BATCH)
        for name in ("current", "linear recurrent unit", "chain", "double exponential with units")
    ]
    random = np.random.default_rng(1)
    xs = 2 * random.standard_normal((STEPS, BATCH, IN))
    ys = random.standard_normal((STEPS, BATCH, OUT * len(models)))
    sequences = xs, ys, np.arange(STEPS) == STEPS - 1.0
    one = OneModule(*models)
    learner = learner_of(one, xs[0])
    assert all(len(path) == 1 for path in learner.hidden_states)
    assert len(learner.graph.uniform) >= len(models), learner.graph.not_uniform
    start = [state.value for state in learner.hidden_states.values()]
    found = learner.etrace_grad(
        *sequences, step_fn=lambda x, *rest: loss_of(learner(x), *rest), reduction="sum"
    )
    for state, value in zip(learner.hidden_states.values(), start, strict=True):
        state.value = value
    assert_tree_close(found, bptt(one, sequences, loss_of)[1])


class Modes(brainstate.nn.Module):
    """A complex recurrence ``h' = lambda h + B x``: a complex array, or two real states."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.is_real = real
        self.b, self.c = (bt.nn.Linear(IN, WIDTH, key=k) for k in (1, 2))
        self.nu, self.theta = (
            brainstate.ParamState(jnp.linspace(k, k + 1.0, WIDTH)) for k in (-1, 0)
        )

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        zeros = jnp.zeros((batch_size, WIDTH))
        self.x, self.y = brainstate.HiddenState(zeros), brainstate.HiddenState(zeros)
        self.h = brainstate.ShortTermState(zeros + 0j)

    def update(self, inputs: Any) -> Any:
        nu, theta = bt.element_wise(self.nu.value), bt.element_wise(self.theta.value)
        if not self.is_real:
            new = jnp.exp(-jnp.exp(nu) + 1j * theta) * self.h.value
            self.h.value = new + self.b(inputs) + 1j * self.c(inputs)
            return jnp.abs(self.h.value) ** 2
        radius, x, y = jnp.exp(-jnp.exp(nu)), self.x.value, self.y.value
        real, imaginary = radius * jnp.cos(theta), radius * jnp.sin(theta)
        self.x.value = real * x - imaginary * y + self.b(inputs)
        self.y.value = imaginary * x + real * y + self.c(inputs)
        return self.x.value**2 + self.y.value**2


def test_a_complex_recurrence_in_real_numbers() -> None:
    """A function of the modulus is not holomorphic, and is exact below a leak all the same."""
    random = np.random.default_rng(0)
    xs = random.normal(size=(STEPS, BATCH, IN))
    sequences = xs, random.normal(size=(STEPS, BATCH, OUT)), np.ones(STEPS)

    def network(real: bool) -> Any:
        return started(brainstate.nn.Sequential(Modes(real), *readout("literal")), BATCH)

    brainstate.random.seed(0)
    model, exact = network(True), network(False)
    for path, state in model.states(brainstate.ParamState).items():
        exact.states(brainstate.ParamState)[path].value = state.value
    learner = learner_of(model, xs[0])
    found = learner.etrace_grad(
        *sequences, step_fn=lambda x, *rest: loss_of(learner(x), *rest), reduction="sum"
    )
    assert_tree_close(found, bptt(exact, sequences, loss_of)[1])
