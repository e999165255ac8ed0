# SPDX-License-Identifier: Apache-2.0
"""Models with one peculiarity each, for comparison with the oracle.

Every model takes inputs [B, 3] (or [3]) and returns something of which ``loss`` is finite and
depends on every parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainstate
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

import braintrace as bt

IN, HIDDEN, OUT, STEPS = 3, 4, 2, 7


def check_jaxpr(jaxpr: Any) -> None:
    """A jaxpr is well formed: no unbound variable, and types that fit."""
    jax.extend.core.check_jaxpr(getattr(jaxpr, "jaxpr", jaxpr))


def weight(*shape: int, scale: float = 0.6) -> brainstate.ParamState:
    return brainstate.ParamState(jnp.asarray(brainstate.random.randn(*shape), "float64") * scale)


@jax.custom_jvp
def spike(v: Any) -> Any:
    return (v > 0.0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: Any, tangents: Any) -> Any:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1.0 + 4.0 * v**2)


@jax.custom_vjp
def spike_vjp(v: Any) -> Any:
    return (v > 0.0).astype(v.dtype)


spike_vjp.defvjp(
    lambda v: (spike_vjp(v), v), lambda v, g: (g * 0.7 * jnp.maximum(0.0, 1.0 - jnp.abs(v)),)
)


class Model(brainstate.nn.Module):
    """States in ``names`` have shape [B, HIDDEN] (or [HIDDEN])."""

    names: tuple[str, ...] = ("h",)
    width = HIDDEN

    def init_state(self, batch_size: int | None = None) -> None:
        for name in self.names:
            setattr(self, name, brainstate.HiddenState(self.start(batch_size)))

    def reset_state(self, batch_size: int | None = None) -> None:
        for name in self.names:
            getattr(self, name).value = self.start(batch_size)

    def start(self, batch_size: int | None) -> Any:
        head = () if batch_size is None else (batch_size,)
        return jnp.full((*head, self.width), 0.1)


class Stack(brainstate.nn.Module):
    """Layers in a list with a readout."""

    def __init__(self, *layers: Any) -> None:
        super().__init__()
        self.layers = list(layers)
        self.out = bt.nn.Linear(HIDDEN, OUT)

    def update(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def cells(cell: type, layers: int) -> Stack:
    def make(size: int) -> Any:
        # a relu cell is silent half of the time; tanh keeps every unit live
        extra = {"activation": "tanh"} if cell is bt.nn.ValinaRNNCell else {}
        return cell(size, HIDDEN, **extra)

    return Stack(make(IN), *(make(HIDDEN) for _ in range(layers - 1)))


class Leaky(Model):
    """h <- a h + W x: position-wise."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)
        return jnp.tanh(self.h.value)


class TwoStates(Model):
    """A same-step path from one state to the other: v reads the new i."""

    names = ("i", "v")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.b = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        self.i.value = 0.7 * self.i.value + bt.matmul(x, self.w.value, self.b.value)
        self.v.value = 0.9 * self.v.value + jnp.tanh(self.i.value) * self.v.value + self.i.value
        return self.v.value * self.i.value


class ReadsOldState(Model):
    """The output reads the old value, the new one and their product."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        old = self.h.value
        self.h.value = jnp.cos(old) + bt.matmul(x, self.w.value)
        return old**2 + self.h.value * jnp.sin(old)


class ReadsOnlyOldState(Model):
    """The new value is not read at all in its own step."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        old = self.h.value
        self.h.value = 0.9 * old + bt.matmul(x, self.w.value)
        return jnp.sin(old)


class Bypass(Model):
    """A spike is computed from a potential that is not itself a state (hard reset)."""

    def __init__(self, surrogate: Callable[[Any], Any] = spike) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN, scale=2.0)
        self.surrogate = surrogate

    def update(self, x: Any) -> Any:
        v = 0.9 * self.h.value + bt.matmul(x, self.w.value)
        s = self.surrogate(v - 0.5)
        self.h.value = v * (1.0 - s)
        return s + 0.1 * self.h.value


class LIF(Model):
    """Recurrent spikes: the spike of the old potential is fed back through an ETP product."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN, scale=2.0)
        self.rec = weight(HIDDEN, HIDDEN, scale=1.0)

    def update(self, x: Any) -> Any:
        s = spike(self.h.value - 0.5)
        current = bt.matmul(x, self.w.value) + bt.matmul(s, self.rec.value)
        self.h.value = 0.9 * self.h.value * (1.0 - jax.lax.stop_gradient(s)) + current
        return spike(self.h.value - 0.5)


class SameStepCross(Model):
    """One member reaches another through an ETP operation in the same step."""

    names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.u = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.a.value = 0.6 * self.a.value + 0.2 * self.b.value + bt.matmul(x, self.w.value)
        self.b.value = (
            0.7 * self.b.value
            + 0.3 * self.a.value
            + bt.matmul(jnp.tanh(self.a.value), self.u.value)
        )
        return self.b.value + self.a.value**2


class PartialPath(Model):
    """One output reaches the state directly and through another operation."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.u = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y) + bt.matmul(jnp.sin(y), self.u.value)
        return self.h.value


class Processed(Model):
    """Masked, absolute, summed and shared weights, in a pytree parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.p = brainstate.ParamState({"w": weight(IN, HIDDEN).value, "b": [weight(HIDDEN).value]})
        self.q = weight(IN, HIDDEN)
        self.mask = (np.arange(IN * HIDDEN).reshape(IN, HIDDEN) % 3 > 0).astype(float)

    def update(self, x: Any) -> Any:
        w = self.mask * jnp.abs(self.p.value["w"]) + jnp.tanh(self.q.value)
        gate = jax.nn.sigmoid(bt.matmul(x, self.q.value))
        drive = bt.matmul(x, w, self.p.value["b"][0] ** 2)
        self.h.value = gate * self.h.value + drive
        return self.h.value * self.q.value.sum()


class UsedTwice(Model):
    """One operation's weight used by two operations and once plainly in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(HIDDEN, HIDDEN)
        self.v = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        y = jnp.tanh(bt.matmul(x, self.v.value))
        self.h.value = 0.5 * self.h.value + bt.matmul(y, self.w.value) * jax.nn.sigmoid(
            bt.matmul(self.h.value, self.w.value)
        )
        return self.h.value @ self.w.value


class LearnedLeak(Model):
    """Element-wise parameters broadcast over the batch, and a scalar one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.leak = weight(HIDDEN)
        self.gain = weight(1)

    def update(self, x: Any) -> Any:
        a = bt.element_wise(self.leak.value, jax.nn.sigmoid)
        g = bt.element_wise(self.gain.value)
        self.h.value = a * self.h.value + g * bt.matmul(x, self.w.value)
        return self.h.value


class GroupState(brainstate.nn.Module):
    """Two states in one array, with a coupling of the states of a position."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.mix = np.array([[0.8, 0.1], [-0.2, 0.7]])

    def init_state(self, batch_size: int | None = None) -> None:
        self.s = brainstate.HiddenGroupState(self.start(batch_size))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.s.value = self.start(batch_size)

    def start(self, batch_size: int | None) -> Any:
        head = () if batch_size is None else (batch_size,)
        return jnp.full((*head, HIDDEN, 2), 0.1)

    def update(self, x: Any) -> Any:
        old = self.s.value
        y = bt.matmul(x, self.w.value)
        new = jnp.tanh(old @ self.mix) + jnp.stack([y, y * old[..., 0]], axis=-1)
        self.s.value = new
        return new[..., 0] * jnp.sin(new[..., 1])


class TopDown(brainstate.nn.Module):
    """Two layers: the lower reads the old state of the upper through an ETP operation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Leaky(), Leaky()]
        self.layers[1].w = weight(HIDDEN, HIDDEN)
        self.back = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        low, high = self.layers
        feedback = bt.matmul(jnp.sin(high.h.value), self.back.value)
        low.h.value = 0.7 * low.h.value + bt.matmul(x, low.w.value) + feedback
        high.h.value = 0.6 * high.h.value + bt.matmul(jnp.tanh(low.h.value), high.w.value)
        return high.h.value + jnp.cos(low.h.value)


class Residual(brainstate.nn.Module):
    """Two layers of equal width with a plain same-step path and a read of an old state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Leaky(), Leaky()]
        self.layers[1].w = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        low, high = self.layers
        old = low.h.value
        low.h.value = 0.7 * old + bt.matmul(x, low.w.value)
        high.h.value = (
            0.6 * high.h.value
            + bt.matmul(jnp.tanh(low.h.value), high.w.value)
            + jnp.sin(low.h.value) * old
        )
        return high.h.value


class Nested(Model):
    """Calls and odd outputs: jit, checkpoint, one value for two states, a state never written."""

    names = ("h", "copy", "kept")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        @jax.jit
        def drive(x: Any, w: Any) -> Any:
            return jax.checkpoint(lambda a: jnp.tanh(bt.matmul(a, w)))(x)

        h = 0.8 * self.h.value + 0.1 * self.copy.value + drive(x, self.w.value)
        self.h.value = h
        self.copy.value = h
        return h * jnp.cos(self.kept.value)


class PlainParameters(Model):
    """A plain bias, a plain input product and a dead end: direct gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.b = weight(HIDDEN)
        self.v = weight(IN, HIDDEN)
        self.out = weight(HIDDEN, OUT)

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value) + x @ self.v.value + self.b.value
        self.h.value = 0.8 * self.h.value + jnp.tanh(drive)
        return bt.matmul(self.h.value, self.out.value)


class Delayed(Model):
    """A delay line: a state takes the old value of another."""

    names = ("h", "late", "later")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        h, late = self.h.value, self.late.value
        self.later.value = late
        self.late.value = h
        self.h.value = jnp.sin(0.8 * h) + bt.matmul(x, self.w.value)
        return self.later.value * self.h.value


class Direct(Model):
    """The operation's output is the state itself, and feeds back only through the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN + HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = bt.matmul(jnp.concatenate([x, jnp.tanh(self.h.value)], -1), self.w.value)
        return self.h.value


class Transposed(brainstate.nn.Module):
    """The state is kept in another axis order than the operation's output."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(self.start(batch_size))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h.value = self.start(batch_size)

    def start(self, batch_size: int | None) -> Any:
        return jnp.full((HIDDEN,) if batch_size is None else (HIDDEN, batch_size), 0.1)

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + bt.matmul(x, self.w.value).T
        return jnp.sin(self.h.value)


class Aside(Model):
    """A member of the group whose new value follows from the input alone."""

    names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        a, b = self.a.value, self.b.value
        self.a.value = jnp.sin(a + b) + bt.matmul(x, self.w.value)
        self.b.value = jnp.cos(x.sum(-1, keepdims=True)) * jnp.ones_like(b)
        return self.a.value + self.b.value * b


class ThroughElementWise(Model):
    """The state passes a gradient-enabled operation by an operand that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        kept = bt.element_wise(0.5 * self.h.value, jnp.tanh)
        self.h.value = 0.3 * self.h.value + kept + bt.matmul(x, self.w.value)
        return self.h.value


class ScalarParameter(Model):
    """A parameter without axes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.a = weight()

    def update(self, x: Any) -> Any:
        leak = bt.element_wise(self.a.value, jax.nn.sigmoid)
        self.h.value = leak * self.h.value + bt.matmul(x, self.w.value)
        return self.h.value


class Mapped(Model):
    """The unbatched operation under ``vmap`` inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.b = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        def one(x: Any) -> Any:
            return bt.matmul(x, self.w.value, self.b.value)

        drive = one(x) if x.ndim == 1 else jax.vmap(one)(x)
        self.h.value = 0.8 * self.h.value + jnp.tanh(drive)
        return self.h.value


class Noisy(Model):
    """A random state and an integer counter are carried along."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.count = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self.trail = brainstate.ShortTermState(jnp.zeros(HIDDEN))

    def reset_state(self, batch_size: int | None = None) -> None:
        super().reset_state(batch_size)
        self.count.value = jnp.zeros((), jnp.int32)
        self.trail.value = jnp.zeros(HIDDEN)

    def update(self, x: Any) -> Any:
        self.count.value = self.count.value + 1
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) / self.count.value
        mean = self.h.value if x.ndim == 1 else self.h.value.mean(0)
        self.trail.value = 0.5 * self.trail.value + mean
        return self.h.value * (1.0 + self.trail.value)


CELL_TYPES = {"vanilla": "ValinaRNNCell", "gru": "GRUCell", "lstm": "LSTMCell"}

CELLS = {
    f"{short}-{layers}": partial(lambda name, n: cells(getattr(bt.nn, name), n), name, layers)
    for short, name in CELL_TYPES.items()
    for layers in (1, 2)
}

#: D-RTRL is BPTT for these: every hidden-to-hidden path is position-wise and in one group.
POSITION_WISE: dict[str, Callable[[], Any]] = {
    "leaky": Leaky,
    "two-states": TwoStates,
    "reads-old-state": ReadsOldState,
    "reads-only-old-state": ReadsOnlyOldState,
    "bypass": Bypass,
    "bypass-custom-vjp": lambda: Bypass(spike_vjp),
    "processed": Processed,
    "learned-leak": LearnedLeak,
    "group-state": GroupState,
    "nested": Nested,
    "delayed": Delayed,
    "transposed": Transposed,
    "mapped": Mapped,
    "aside": Aside,
    "through-element-wise": ThroughElementWise,
    "scalar-parameter": ScalarParameter,
}

RECURRENT: dict[str, Callable[[], Any]] = {
    **CELLS,
    "lif": LIF,
    "same-step-cross": SameStepCross,
    "partial-path": PartialPath,
    "used-twice": UsedTwice,
    "top-down": TopDown,
    "residual": Residual,
    "plain-parameters": PlainParameters,
    "direct": Direct,
    "noisy": Noisy,
}

ALL = {**POSITION_WISE, **RECURRENT}


@dataclass
class Case:
    """A model with initialised states and data."""

    model: Any
    xs: Any
    ys: Any
    batch: int | None

    def loss(self, out: Any, y: Any) -> Any:
        return jnp.sum(jnp.sin(out) * y + out**2)

    def reset(self) -> None:
        brainstate.nn.reset_all_states(self.model, batch_size=self.batch)


def stir(case: Case) -> None:
    """Random hidden states, so that a single step has no gradient that is zero by symmetry."""
    rng = np.random.default_rng(2)
    for state in brainstate.graph.states(case.model, brainstate.HiddenState).values():
        state.value = jnp.asarray(0.4 + rng.normal(size=state.value.shape))


def case(name: str, batch: int | None, steps: int = STEPS) -> Case:
    model = ALL[name]()
    brainstate.nn.init_all_states(model, batch_size=batch)
    rng = np.random.default_rng(1)
    head = () if batch is None else (batch,)
    xs = jnp.asarray(rng.normal(size=(steps, *head, IN)))
    shape = brainstate.transform.StatefulFunction(model).get_out_shapes(xs[0])[0].shape
    return Case(model, xs, jnp.asarray(rng.normal(size=(steps, *shape))), batch)
