# SPDX-License-Identifier: Apache-2.0
"""Small cells on test primitives; ``cut=True`` puts the recurrent input under stop_gradient."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace.ops.primitive import register_primitive


def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def _fn(w: jax.Array) -> jax.Array:
    return 0.5 * w + 0.1 * w**2


mv_p = register_primitive("oracle_mv", _matmul)
mm_p = register_primitive("oracle_mm", _matmul, batched=True)
open_mv_p = register_primitive("oracle_open_mv", _matmul, gradient_enabled=True)
open_mm_p = register_primitive("oracle_open_mm", _matmul, batched=True, gradient_enabled=True)
element_wise_p = register_primitive("oracle_element_wise", _fn, x_invar_index=None)


def mm(x: jax.Array, w: jax.Array) -> jax.Array:
    return (mm_p if x.ndim == 2 else mv_p).bind(x, w)


def open_mm(x: jax.Array, w: jax.Array) -> jax.Array:
    return (open_mm_p if x.ndim == 2 else open_mv_p).bind(x, w)


def element_wise(w: jax.Array) -> jax.Array:
    return element_wise_p.bind(w)


def normal(seed: int, *shape: int, scale: float = 0.7) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(scale=scale, size=shape))


def param(seed: int, *shape: int) -> brainstate.ParamState[Any]:
    return brainstate.ParamState(normal(seed, *shape))


def hidden(seed: int, *shape: int) -> brainstate.HiddenState:
    return brainstate.HiddenState(normal(seed, *shape))


@jax.custom_jvp
def spike(v: jax.Array) -> jax.Array:
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: Any, tangents: Any) -> Any:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1 + jnp.abs(v)) ** 2


class Cell(brainstate.nn.Module):
    """A cell of ``n_hidden`` units on ``n_in`` inputs, ``batch=None`` for a single example."""

    n_in, n_hidden = 2, 3

    def __init__(self, batch: int | None = 2, cut: bool = False, seed: int = 0):
        super().__init__()
        self.shape = (self.n_hidden,) if batch is None else (batch, self.n_hidden)
        self.seed = seed
        self.cut = cut
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def weight(self, k: int, *shape: int) -> brainstate.ParamState[Any]:
        return param(100 * self.seed + k, *shape)

    def state(self, k: int) -> brainstate.HiddenState:
        return hidden(100 * self.seed + 50 + k, *self.shape)

    def recurrent(self, h: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(h) if self.cut else h


class Vanilla(Cell):
    """``h = tanh([x, h] W + b)``."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in + self.n_hidden, self.n_hidden)
        self.b = self.weight(1, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([x, self.recurrent(self.h.value)], axis=-1)
        self.h.value = jnp.tanh(mm(inputs, self.w.value) + self.b.value)
        return self.h.value


class GRU(Cell):
    """Reset gate before the product: three linear maps, two relations."""

    def build(self) -> None:
        shape = (self.n_in + self.n_hidden, self.n_hidden)
        self.wz, self.wr, self.wc = (self.weight(k, *shape) for k in range(3))
        self.h = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        h = self.h.value
        inputs = jnp.concatenate([x, self.recurrent(h)], axis=-1)
        z = jax.nn.sigmoid(mm(inputs, self.wz.value))
        r = jax.nn.sigmoid(mm(inputs, self.wr.value))
        c = jnp.tanh(mm(jnp.concatenate([x, self.recurrent(r * h)], axis=-1), self.wc.value))
        self.h.value = (1 - z) * h + z * c
        return self.h.value


class GRUResetAfter(Cell):
    """Reset gate after the product: four linear maps, all with a relation."""

    def build(self) -> None:
        shape = (self.n_in + self.n_hidden, self.n_hidden)
        self.wz, self.wr = (self.weight(k, *shape) for k in range(2))
        self.wx = self.weight(2, self.n_in, self.n_hidden)
        self.wh = self.weight(3, self.n_hidden, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        h = self.h.value
        inputs = jnp.concatenate([x, self.recurrent(h)], axis=-1)
        z = jax.nn.sigmoid(mm(inputs, self.wz.value))
        r = jax.nn.sigmoid(mm(inputs, self.wr.value))
        c = jnp.tanh(mm(x, self.wx.value) + r * mm(self.recurrent(h), self.wh.value))
        self.h.value = (1 - z) * h + z * c
        return self.h.value


class LSTM(Cell):
    """Two states in one group, the second a function of the first; plain biases."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in + self.n_hidden, 4 * self.n_hidden)
        self.b = self.weight(1, 4 * self.n_hidden)
        self.c, self.h = self.state(0), self.state(1)

    def update(self, x: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([x, self.recurrent(self.h.value)], axis=-1)
        gates = jnp.split(mm(inputs, self.w.value) + self.b.value, 4, axis=-1)
        i, f, o = (jax.nn.sigmoid(gate) for gate in gates[:3])
        self.c.value = f * self.c.value + i * jnp.tanh(gates[3])
        self.h.value = o * jnp.tanh(self.c.value)
        return self.h.value


class Leaky(Cell):
    """``h = a h + tanh(x W)`` with one trained decay per unit."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.a = self.weight(1, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        h = self.h.value
        self.h.value = element_wise(self.a.value) * h + jnp.tanh(mm(x, self.w.value))
        return self.h.value


class LeakyOld(Leaky):
    """The output reads the old state as well."""

    def update(self, x: jax.Array) -> jax.Array:
        old = self.h.value
        return super().update(x) * jnp.cos(old)


class TwoStates(Cell):
    """A synaptic current that feeds a membrane, and is fed back, unit by unit."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.i, self.v = self.state(0), self.state(1)

    def update(self, x: jax.Array) -> jax.Array:
        v = self.v.value
        self.i.value = 0.8 * self.i.value + mm(x, self.w.value) - 0.1 * jnp.sin(v)
        self.v.value = 0.9 * v + jnp.tanh(self.i.value)
        return self.v.value + self.i.value**2


class LIF(Cell):
    """Spikes are emitted from the membrane before the reset: they bypass the hidden state."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.v = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        v = 0.9 * self.v.value + mm(x, self.w.value)
        out = spike(v)
        self.v.value = v - 0.5 * out
        return out + 0.1 * jnp.sin(v)


class DelayLine(Cell):
    """``b`` takes the old value of ``a``; ``c`` and ``a`` take one and the same value."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.a, self.b, self.c = (self.state(k) for k in range(3))

    def update(self, x: jax.Array) -> jax.Array:
        old_b, old_c = self.b.value, self.c.value
        new = jnp.tanh(mm(x, self.w.value)) + 0.3 * self.a.value
        self.b.value = self.a.value
        self.a.value = new
        self.c.value = new
        return jnp.sin(new) * old_b + old_c * self.b.value


class Processed(Cell):
    """Weights that are masked, shared by two operations, used plainly, used as ``x``, and trees."""

    def build(self) -> None:
        tree = {"w": normal(1, self.n_in, self.n_hidden), "r": normal(2, 3, self.n_hidden)}
        self.p = brainstate.ParamState(tree)
        self.gain = self.weight(3, self.n_hidden)
        self.h, self.g = self.state(0), self.state(1)

    def update(self, x: jax.Array) -> jax.Array:
        p, h = self.p.value, self.recurrent(self.h.value)
        mask = jnp.asarray([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
        y = mm(x, mask * jnp.abs(p["w"])) + mm(h, p["r"] * element_wise(self.gain.value))
        self.h.value = jnp.tanh(y + x @ p["w"]) * 0.5 + 0.4 * self.h.value
        self.g.value = 0.7 * self.g.value + mm(jnp.cos(self.h.value), p["r"])
        return self.g.value + mm(p["r"], p["r"])[0] * self.gain.value


class Direct(Cell):
    """The output of an operation is a hidden state as it is."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.u = self.weight(1, self.n_hidden, self.n_hidden)
        self.h = self.state(0)
        self.g = hidden(7, *self.shape[:-1], 2 * self.n_hidden)

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = mm(x, self.w.value)
        both = jnp.concatenate([self.h.value, mm(self.h.value, self.u.value)], axis=-1)
        self.g.value = 0.5 * self.g.value + both
        return self.g.value[..., : self.n_hidden] * self.h.value + self.g.value[..., 3:]


class Partial(Cell):
    """Around and through an operation: ``y`` to a state, a state to its group, weight to weight."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.u, self.v = (self.weight(k, self.n_hidden, self.n_hidden) for k in (1, 2))
        self.q = self.weight(3, self.n_hidden, self.n_hidden)
        self.c, self.h = self.state(0), self.state(1)

    def update(self, x: jax.Array) -> jax.Array:
        y = mm(x, self.w.value) + open_mm(self.h.value, element_wise(self.q.value))
        self.c.value = 0.8 * self.c.value + y + mm(jnp.tanh(y), self.u.value)
        self.h.value = jnp.cos(self.c.value) + mm(jnp.tanh(self.c.value), self.v.value)
        return self.h.value + y**2


class Chain(Cell):
    """``a`` to ``b`` to ``c`` in one step."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.a, self.b, self.c = (self.state(k) for k in range(3))

    def update(self, x: jax.Array) -> jax.Array:
        self.a.value = jnp.sin(self.a.value) + mm(x, self.w.value)
        self.b.value = jnp.sin(self.b.value) + jnp.tanh(self.a.value)
        self.c.value = jnp.sin(self.c.value) + self.b.value**2 + 0.3 * self.a.value
        return self.c.value


class Open(Cell):
    """A recurrent product that lets hidden-to-hidden gradients through."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.r = self.weight(1, self.n_hidden, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        recurrent = open_mm(self.h.value, self.r.value)
        self.h.value = jnp.tanh(mm(x, self.w.value) + recurrent)
        return self.h.value


class Mixing(Cell):
    """A plain recurrent product: the transition is not position-wise."""

    def build(self) -> None:
        self.w = self.weight(0, self.n_in, self.n_hidden)
        self.r = self.weight(1, self.n_hidden, self.n_hidden)
        self.h = self.state(0)

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = jnp.tanh(mm(x, self.w.value) + self.h.value @ self.r.value)
        return self.h.value


class Stack(brainstate.nn.Module):
    """Cells in a row, each after the first on ``n_hidden`` inputs, and a plain readout."""

    def __init__(self, *cells: Cell, jit: bool = False):
        super().__init__()
        self.cells = list(cells)
        self.readout = param(99, Cell.n_hidden, 2)
        self.jit = jit

    def update(self, x: jax.Array) -> jax.Array:
        for cell in self.cells:
            call = brainstate.transform.jit(cell.update) if self.jit else cell.update
            x = call(x)
        return x @ self.readout.value


def second(kind: type[Cell], **kwargs: Any) -> Cell:
    """A cell for the second place of a stack."""
    return type(kind.__name__, (kind,), {"n_in": Cell.n_hidden})(seed=1, **kwargs)


def data(steps: int, batch: int | None = 2, out: int = 3) -> tuple[jax.Array, jax.Array]:
    lead = (steps,) if batch is None else (steps, batch)
    return normal(11, *lead, 2, scale=1.0), normal(12, *lead, out, scale=1.0)


def loss_fn(out: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((out - target) ** 2 * jnp.cos(out))
