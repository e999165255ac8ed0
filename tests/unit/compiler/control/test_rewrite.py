# SPDX-License-Identifier: Apache-2.0
"""Models with branches and loops against the same models written without them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from tests import zoo
from tests.zoo import HIDDEN, IN, STEPS, weight

lax = jax.lax


class Written(zoo.Model):
    """A leaky integrator; ``drive`` is written twice, with control flow and by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.w = weight(IN, HIDDEN)
        self.u = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        drive = self.hand(x) if self.by_hand else self.control(x)
        self.h.value = 0.8 * self.h.value + drive
        return self.h.value * jnp.cos(self.h.value)

    def control(self, x: Any) -> Any:
        raise NotImplementedError

    def hand(self, x: Any) -> Any:
        raise NotImplementedError

    def nothing(self) -> Any:
        return jnp.zeros_like(self.h.value)


def only(taken: Any, x: Any) -> Any:
    """What an operation gets: ``x``, or zero when its branch is not taken."""
    return jnp.where(taken, x, 0.0)


class OneBranch(Written):
    def control(self, x: Any) -> Any:
        return lax.cond(
            x.sum() > 0.0,
            lambda x, w: jnp.tanh(bt.matmul(jnp.sin(x), w)) * self.h.value,
            lambda x, w: self.nothing() + x.sum(),
            x,
            self.w.value,
        ) + bt.matmul(x, self.u.value)

    def hand(self, x: Any) -> Any:
        taken = x.sum() > 0.0
        y = jnp.tanh(bt.matmul(only(taken, jnp.sin(x)), self.w.value)) * self.h.value
        return jnp.where(taken, y, x.sum()) + bt.matmul(x, self.u.value)


class BothBranches(Written):
    """The predicate depends on the hidden state; one weight is in both branches."""

    def control(self, x: Any) -> Any:
        return lax.cond(
            self.h.value.sum() > 0.3,
            lambda: bt.matmul(x, self.w.value) - bt.matmul(x, jnp.abs(self.u.value)),
            lambda: jnp.sin(self.h.value) * bt.matmul(2.0 * x, self.w.value),
        )

    def hand(self, x: Any) -> Any:
        taken = self.h.value.sum() > 0.3
        own = only(taken, x)
        first = bt.matmul(own, self.w.value) - bt.matmul(own, jnp.abs(self.u.value))
        other = jnp.sin(self.h.value) * bt.matmul(only(~taken, 2.0 * x), self.w.value)
        return jnp.where(taken, first, other)


class Switch(Written):
    """Three branches by time: none, one with a bias, and two operations in a row."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.b = weight(HIDDEN)
        self.v = weight(HIDDEN, HIDDEN)
        self.time = brainstate.ShortTermState(jnp.zeros((), jnp.int32))

    def reset_state(self, batch_size: int | None = None) -> None:
        super().reset_state(batch_size)
        self.time.value = jnp.zeros((), jnp.int32)

    def update(self, x: Any) -> Any:
        self.time.value = self.time.value + 1
        return super().update(x)

    def control(self, x: Any) -> Any:
        def chain(x: Any) -> Any:
            inner = jnp.tanh(bt.matmul(x, self.u.value))
            return inner + bt.matmul(inner, self.v.value)

        branches = [
            lambda x: -self.h.value * x.mean(),
            lambda x: jnp.sin(bt.matmul(x, self.w.value, self.b.value)),
            chain,
        ]
        return lax.switch(self.time.value % 3, branches, x)

    def hand(self, x: Any) -> Any:
        which = self.time.value % 3
        plain = -self.h.value * x.mean()
        biased = jnp.sin(bt.matmul(only(which == 1, x), self.w.value, self.b.value))
        inner = jnp.tanh(bt.matmul(only(which == 2, x), self.u.value))
        chain = inner + bt.matmul(only(which == 2, inner), self.v.value)
        return jnp.where(which == 0, plain, jnp.where(which == 1, biased, chain))


class NestedCond(Written):
    """A branch, a jit and a loop inside a branch."""

    def control(self, x: Any) -> Any:
        @jax.jit
        def twice(x: Any) -> Any:
            return lax.fori_loop(
                0, 2, lambda i, y: jnp.tanh(y + bt.matmul(x, self.u.value)), self.h.value
            )

        def outer(x: Any) -> Any:
            return 0.5 * lax.cond(
                x[..., 0].sum() > 0.0, lambda: jnp.cos(bt.matmul(x, self.w.value)), lambda: twice(x)
            )

        return lax.cond(x.sum() > 0.0, outer, lambda x: self.h.value * 0.1, x)

    def hand(self, x: Any) -> Any:
        outer, inner = x.sum() > 0.0, x[..., 0].sum() > 0.0
        y = jnp.cos(bt.matmul(only(outer & inner, x), self.w.value))
        z, own = self.h.value, only(outer & ~inner, x)
        for _ in range(2):
            z = jnp.tanh(z + bt.matmul(own, self.u.value))
        return jnp.where(outer, 0.5 * jnp.where(inner, y, z), self.h.value * 0.1)


class WritesState(Written):
    """A brainstate ``cond`` that writes the hidden state itself, and reads it again."""

    def update(self, x: Any) -> Any:
        if self.by_hand:
            taken = x.sum() > 0.0
            drive = bt.matmul(only(taken, x), self.w.value)
            new = 0.9 * self.h.value + drive
            out = jnp.where(taken, jnp.sin(new), 1.0)
            self.h.value = jnp.where(taken, new, 0.5 * self.h.value)
        else:

            def integrate() -> Any:
                self.h.value = 0.9 * self.h.value + bt.matmul(x, self.w.value)
                return jnp.sin(self.h.value)

            def decay() -> Any:
                self.h.value = 0.5 * self.h.value
                return jnp.ones_like(self.h.value)

            out = brainstate.transform.cond(x.sum() > 0.0, integrate, decay)
        return out * self.h.value + bt.matmul(x, self.u.value)


class Cell(Written):
    """A whole cell with two states and a plain read of a weight inside a branch."""

    names = ("h", "c")

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.r = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        h, c = self.h.value, self.c.value
        taken = x.sum() > -0.5

        def cell(x: Any, h: Any) -> Any:
            new = 0.7 * c + jnp.tanh(bt.matmul(x, self.w.value) + bt.matmul(h, self.r.value))
            return jnp.sin(new), new, jnp.sum(self.u.value) * new

        def skip(x: Any, h: Any) -> Any:
            return h, 0.9 * c, x.mean() * h

        if self.by_hand:
            pairs = zip(cell(only(taken, x), only(taken, h)), skip(x, h), strict=True)
            results = [jnp.where(taken, a, b) for a, b in pairs]
        else:
            results = lax.cond(taken, cell, skip, x, h)
        self.h.value, self.c.value, out = results
        return out


class Loop(Written):
    """A ``scan`` with operands of all kinds, run backward; the same weight in each iteration."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.stack = weight(3, HIDDEN, HIDDEN, scale=0.3)

    def control(self, x: Any) -> Any:
        def body(y: Any, now: Any) -> Any:
            factor, v = now
            y = jnp.tanh(bt.matmul(x, self.w.value) + bt.matmul(y, v)) * factor
            return y, y + factor * bt.matmul(x, self.u.value)

        y, ys = lax.scan(body, self.h.value, (jnp.arange(1.0, 4.0), self.stack.value), reverse=True)
        return y + (ys * jnp.asarray([0.1, 0.2, 0.3]).reshape(3, *(1,) * y.ndim)).sum(0)

    def hand(self, x: Any) -> Any:
        y, total = self.h.value, 0.0
        for t in (2, 1, 0):
            v = self.stack.value[t]
            y = jnp.tanh(bt.matmul(x, self.w.value) + bt.matmul(y, v)) * (t + 1.0)
            out = y + (t + 1.0) * bt.matmul(x, self.u.value)
            total = total + (0.1 + 0.1 * t) * out
        return y + total


class ForLoop(Written):
    """brainstate's loop, with the hidden state written in each iteration and a branch inside."""

    def update(self, x: Any) -> Any:
        def step(i: Any) -> Any:
            even = i % 2 == 0
            if self.by_hand:
                drive = bt.matmul(only(even, x), self.w.value)
            else:
                drive = lax.cond(even, lambda: bt.matmul(x, self.w.value), self.nothing)
            self.h.value = 0.9 * self.h.value + 0.5 * drive
            return self.h.value

        if self.by_hand:
            outs = jnp.stack([step(jnp.asarray(i)) for i in range(3)])
        else:
            outs = brainstate.transform.for_loop(step, jnp.arange(3))
        return outs.sum(0) * bt.matmul(x, self.u.value)


class Substeps(Written):
    """A neuron with two states integrated in small steps: the loop stays."""

    names = ("v", "a")

    def update(self, x: Any) -> Any:
        current = bt.matmul(x, self.w.value)

        def small(carry: Any, t: Any) -> Any:
            v, a = carry
            v = v + 0.1 * (current - v + jnp.sin(a) * t)
            return (v, a + 0.1 * (v - 0.5 * a)), v

        start = (self.v.value, self.a.value)
        if self.by_hand:
            for t in (0.0, 1.0, 2.0, 3.0):
                start, _ = small(start, t)
            self.v.value, self.a.value = start
        else:
            (self.v.value, self.a.value), _ = lax.scan(small, start, jnp.arange(4.0))
        return self.v.value * zoo.spike(self.a.value - 0.1) + bt.matmul(x, self.u.value)


class KeptCond(Written):
    """No operation inside: the branch stays, on the transition and on the tail."""

    def control(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        return lax.cond(x.sum() > 0.0, jnp.sin, jnp.cos, y) * lax.switch(
            jnp.int32(jnp.abs(x).sum()) % 2, [jnp.sin, jnp.exp], self.h.value
        ) + bt.matmul(x, self.u.value)

    def hand(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        even = jnp.int32(jnp.abs(x).sum()) % 2 == 0
        factor = jnp.where(even, jnp.sin(self.h.value), jnp.exp(self.h.value))
        y = jnp.where(x.sum() > 0.0, jnp.sin(y), jnp.cos(y))
        return y * factor + bt.matmul(x, self.u.value)


class ElementWise(Written):
    """Operations without ``x``, and one on a value that is no parameter."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.a = weight(HIDDEN)

    def control(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value + self.u.value)
        return lax.cond(
            x.sum() > 0.0,
            lambda h: bt.element_wise(self.a.value, jnp.tanh) * (y + h),
            lambda h: bt.element_wise(0.5 * h, jnp.exp) * y,
            self.h.value,
        )

    def hand(self, x: Any) -> Any:
        taken, h = x.sum() > 0.0, self.h.value
        y = bt.matmul(x, self.w.value + self.u.value)
        first = bt.element_wise(self.a.value, jnp.tanh) * (y + h)
        return jnp.where(taken, first, bt.element_wise(only(~taken, 0.5 * h), jnp.exp) * y)


class Calls(Written):
    """jit in jit, checkpoint, and vmap over heads."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.v = weight(HIDDEN // 2, HIDDEN // 2)

    def control(self, x: Any) -> Any:
        inner = jax.jit(lambda x, w: jnp.sin(bt.matmul(x, w)))
        outer = jax.jit(lambda x, w, u: inner(x, w) + inner(2.0 * x, u))
        y = outer(x, self.w.value, self.u.value)
        y = y + jax.checkpoint(lambda x: jnp.tanh(bt.matmul(x, self.w.value)))(x)
        heads = y.reshape(*y.shape[:-1], 2, HIDDEN // 2)
        mixed = jax.vmap(lambda head: bt.matmul(head, self.v.value), in_axes=-2, out_axes=-2)(heads)
        return mixed.reshape(y.shape)

    def hand(self, x: Any) -> Any:
        y = jnp.sin(bt.matmul(x, self.w.value)) + jnp.sin(bt.matmul(2.0 * x, self.u.value))
        y = y + jnp.tanh(bt.matmul(x, self.w.value))
        half = HIDDEN // 2
        parts = [bt.matmul(part, self.v.value) for part in (y[..., :half], y[..., half:])]
        return jnp.concatenate(parts, -1)


class Spikes(Written):
    """Surrogate gradients inside branches and loops."""

    def control(self, x: Any) -> Any:
        def spiking(x: Any) -> Any:
            return zoo.spike(bt.matmul(x, self.w.value) - 0.1 * self.h.value)

        def loop(x: Any) -> Any:
            def body(carry: Any, _: Any) -> Any:
                return 0.5 * carry + zoo.spike_vjp(bt.matmul(x, self.u.value) - carry), None

            return lax.scan(body, self.h.value, None, length=2)[0]

        return lax.cond(x.sum() > 0.0, spiking, loop, x)

    def hand(self, x: Any) -> Any:
        taken = x.sum() > 0.0
        first = zoo.spike(bt.matmul(only(taken, x), self.w.value) - 0.1 * self.h.value)
        carry, own = self.h.value, only(~taken, x)
        for _ in range(2):
            carry = 0.5 * carry + zoo.spike_vjp(bt.matmul(own, self.u.value) - carry)
        return jnp.where(taken, first, carry)


class Random(Written):
    """Dropout and noise from a key that is carried along, drawn inside a branch."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.key = brainstate.ShortTermState(jax.random.key_data(jax.random.key(3)))

    def reset_state(self, batch_size: int | None = None) -> None:
        super().reset_state(batch_size)
        self.key.value = jax.random.key_data(jax.random.key(3))

    def draws(self, key: Any, x: Any) -> tuple[Any, Any]:
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        noise = jax.random.normal(jax.random.fold_in(key, 1), self.h.value.shape, "float64")
        return jnp.where(kept, x, 0.0), noise

    def update(self, x: Any) -> Any:
        key, now = jax.random.split(jax.random.wrap_key_data(self.key.value))
        self.key.value = jax.random.key_data(key)
        self.now = now
        return super().update(x)

    def control(self, x: Any) -> Any:
        def noisy(key: Any) -> Any:
            thinned, noise = self.draws(key, x)
            more = jax.random.uniform(jax.random.fold_in(key, 2), noise.shape, "float64")
            return jnp.tanh(bt.matmul(thinned, self.w.value) + noise) * (1.0 + more)

        return lax.cond(x.sum() > 0.0, noisy, lambda key: bt.matmul(x, self.u.value), self.now)

    def hand(self, x: Any) -> Any:
        taken = x.sum() > 0.0
        thinned, noise = self.draws(self.now, x)
        more = jax.random.uniform(jax.random.fold_in(self.now, 2), noise.shape, "float64")
        first = jnp.tanh(bt.matmul(only(taken, thinned), self.w.value) + noise) * (1.0 + more)
        return jnp.where(taken, first, bt.matmul(only(~taken, x), self.u.value))


class Environment(Written):
    """brainstate's ``dt``, and its dropout, which is off in evaluation."""

    def control(self, x: Any) -> Any:
        def integrate() -> Any:
            dt = brainstate.environ.get("dt")
            return dt * (bt.matmul(x, self.w.value) - self.h.value) / 0.3

        return brainstate.transform.cond(
            x.sum() > 0.0, integrate, lambda: bt.matmul(x, self.u.value)
        )

    def hand(self, x: Any) -> Any:
        taken = x.sum() > 0.0
        first = 0.1 * (bt.matmul(only(taken, x), self.w.value) - self.h.value) / 0.3
        return jnp.where(taken, first, bt.matmul(only(~taken, x), self.u.value))


class BroadcastInBranch(Written):
    """A parameter broadcast over the batch, behind a surrogate without forward mode."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.a = weight(HIDDEN)

    def control(self, x: Any) -> Any:
        a, h = bt.element_wise(self.a.value), self.h.value
        drive = bt.matmul(x, self.w.value + self.u.value)
        return drive + lax.cond(x.sum() > 0.0, lambda: zoo.spike_vjp(a + h), lambda: a * h)

    def hand(self, x: Any) -> Any:
        a, h = bt.element_wise(self.a.value), self.h.value
        drive = bt.matmul(x, self.w.value + self.u.value)
        return drive + jnp.where(x.sum() > 0.0, zoo.spike_vjp(a + h), a * h)


class NormInBranch(Written):
    """Positions are mixed in one branch alone."""

    def control(self, x: Any) -> Any:
        def centred(x: Any) -> Any:
            y = bt.matmul(x, self.w.value)
            return jnp.tanh(y - y.mean(-1, keepdims=True))

        return lax.cond(x.sum() > 0.0, centred, lambda x: bt.matmul(x, self.u.value), x)

    def hand(self, x: Any) -> Any:
        taken = x.sum() > 0.0
        y = bt.matmul(only(taken, x), self.w.value)
        other = bt.matmul(only(~taken, x), self.u.value)
        return jnp.where(taken, jnp.tanh(y - y.mean(-1, keepdims=True)), other)


class GatesBehindBranch(Written):
    """One product through a branch with results of several shapes, then cut into gates."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__(by_hand)
        self.v = weight(IN, 2 * HIDDEN)

    def merged(self, x: Any, y: Any, z: Any) -> Any:
        i, f = jnp.split(y, 2, axis=-1)
        plain = bt.matmul(x, self.w.value) * bt.matmul(x, self.u.value)
        return jax.nn.sigmoid(f) * self.h.value + i * jnp.sin(z.sum()) + plain

    def control(self, x: Any) -> Any:
        y = bt.matmul(x, self.v.value)
        return self.merged(
            x, *lax.cond(x.sum() > 0.0, lambda: (jnp.sin(y), 2.0 * x), lambda: (y, x))
        )

    def hand(self, x: Any) -> Any:
        y, taken = bt.matmul(x, self.v.value), x.sum() > 0.0
        return self.merged(x, jnp.where(taken, jnp.sin(y), y), jnp.where(taken, 2.0 * x, x))


# --- the branch not taken has no finite value, or no finite slope ------------------------------


class LogOfNegative(Written):
    """In front of the operation, in ``x``."""

    def control(self, x: Any) -> Any:
        total = x.sum()
        return lax.cond(
            total > 0.0,
            lambda: bt.matmul(jnp.log(total) * x, self.w.value),
            lambda: bt.matmul(jnp.sqrt(-total) * x, self.u.value),
        )

    def hand(self, x: Any) -> Any:
        total = x.sum()
        up, down = jnp.where(total > 0.0, total, 1.0), jnp.where(total > 0.0, 1.0, -total)
        first = bt.matmul(only(total > 0.0, jnp.log(up) * x), self.w.value)
        return jnp.where(
            total > 0.0, first, bt.matmul(only(total <= 0.0, jnp.sqrt(down) * x), self.u.value)
        )


class DivisionByZero(Written):
    """Behind the operation, by a function of the hidden state that is zero in the other case."""

    def control(self, x: Any) -> Any:
        gap = jax.nn.relu(self.h.value.sum() * x.sum())
        return lax.cond(
            gap > 0.0,
            lambda: 0.1 * jnp.tanh(bt.matmul(x, self.w.value) / gap),
            lambda: bt.matmul(x, self.u.value) * jnp.sqrt(0.1 - jnp.minimum(gap, 0.05)),
        )

    def hand(self, x: Any) -> Any:
        gap = jax.nn.relu(self.h.value.sum() * x.sum())
        taken = gap > 0.0
        safe = jnp.where(taken, gap, 1.0)
        first = 0.1 * jnp.tanh(bt.matmul(only(taken, x), self.w.value) / safe)
        other = bt.matmul(only(~taken, x), self.u.value)
        return jnp.where(taken, first, other * jnp.sqrt(0.1 - jnp.minimum(gap, 0.05)))


class SlopeAtZero(Written):
    """``sqrt`` and ``log`` of the output: their slopes are infinite where the input is zero."""

    def control(self, x: Any) -> Any:
        return lax.cond(
            x.sum() > 0.0,
            lambda: jnp.sqrt(bt.matmul(jnp.abs(x), jnp.abs(self.w.value))),
            lambda: (
                jnp.log(bt.matmul(jnp.abs(x), jnp.abs(self.u.value))) * jnp.sqrt(jnp.abs(x).sum())
            ),
        )

    def hand(self, x: Any) -> Any:
        taken = x.sum() > 0.0
        first = bt.matmul(only(taken, jnp.abs(x)), jnp.abs(self.w.value))
        other = bt.matmul(only(~taken, jnp.abs(x)), jnp.abs(self.u.value))
        first = jnp.sqrt(jnp.where(taken, first, 1.0))
        other = jnp.log(jnp.where(taken, 1.0, other)) * jnp.sqrt(jnp.abs(x).sum())
        return jnp.where(taken, first, other)


class HiddenInKeptBranch(Written):
    """A branch that stays, with a singular function of the hidden state."""

    def control(self, x: Any) -> Any:
        h = self.h.value
        low = h.min()
        leak = lax.cond(low > 0.0, lambda: jnp.sqrt(h), lambda: h * 0.1)
        return 0.1 * leak + bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value) ** 2

    def hand(self, x: Any) -> Any:
        h = self.h.value
        taken = h.min() > 0.0
        leak = jnp.where(taken, jnp.sqrt(jnp.where(taken, h, 1.0)), h * 0.1)
        return 0.1 * leak + bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value) ** 2


SINGULAR = [LogOfNegative, DivisionByZero, SlopeAtZero, HiddenInKeptBranch]
MODELS = [
    OneBranch, BothBranches, Switch, NestedCond, WritesState, Cell, Loop, ForLoop, Substeps,
    KeptCond, ElementWise, Calls, Spikes, Random, Environment, BroadcastInBranch,
    NormInBranch, GatesBehindBranch, *SINGULAR,
]  # fmt: skip


def built(model: Callable[..., Any], batch: int | None, *args: Any) -> zoo.Case:
    brainstate.random.seed(0)
    module = model(*args)
    brainstate.nn.init_all_states(module, batch_size=batch)
    rng = np.random.default_rng(1)
    head = () if batch is None else (batch,)
    xs = jnp.asarray(rng.normal(size=(STEPS, *head, IN)))
    ys = jnp.asarray(rng.normal(size=(STEPS, *head, HIDDEN)))
    return zoo.Case(module, xs, ys, batch)


def compiled(case: zoo.Case) -> Any:
    learner = bt.D_RTRL(case.model, downstream="step")
    learner.compile_graph(case.xs[0])
    return learner


@pytest.fixture(autouse=True)
def small_steps() -> Any:
    with brainstate.environ.context(dt=0.1):
        yield


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("model", MODELS)
def test_equals_the_model_written_without(model: type, batch: int | None) -> None:
    by_hand = built(model, batch, True)
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    case = built(model, batch, False)
    learner = compiled(case)
    zoo.check_jaxpr(learner.graph.module_info.jaxpr)
    for block in (1, 3, "auto") if batch else ("auto",):
        case.reset()
        learner.reset_state()
        grads, losses = learner.etrace_grad(
            case.xs,
            case.ys,
            step_fn=lambda x, y: case.loss(learner(x), y),
            reduction="sum",
            return_value=True,
            block_size=block,
        )
        assert_tree_close(losses, oracle.loss)
        assert_tree_close(grads, oracle.grads)


@pytest.mark.parametrize("model", MODELS)
def test_a_learner_call_under_grad_is_the_same(model: type) -> None:
    by_hand = built(model, 2, True)
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    case = built(model, 2, False)
    learner = compiled(case)

    @brainstate.transform.jit
    def of_step(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: case.loss(learner(x), y), learner.param_states)()

    steps = [of_step(x, y) for x, y in zip(case.xs, case.ys, strict=True)]
    assert_tree_close(jax.tree.map(lambda *each: sum(each), *steps), oracle.grads)


@pytest.mark.parametrize("model", [OneBranch, BothBranches, LogOfNegative, SlopeAtZero, Spikes])
def test_position_wise_recurrence_equals_bptt(model: type) -> None:
    """JAX's own derivative of the branches, which is not cut anywhere."""
    case = built(model, 2, False)
    _, reference = bptt(case.model, (case.xs, case.ys), case.loss)
    learner = compiled(case)
    grads = learner.etrace_grad(
        case.xs, case.ys, step_fn=lambda x, y: case.loss(learner(x), y), reduction="sum"
    )
    assert_tree_close(grads, reference)


@pytest.mark.parametrize("model", [LogOfNegative, DivisionByZero, HiddenInKeptBranch])
def test_the_other_branch_is_singular(model: type) -> None:
    """Otherwise the models above would show nothing: a select has no finite gradient here."""
    case = built(model, 2, False)
    info = bt.extract_module_info(case.model, case.xs[0])
    kept = [eqn for eqn in info.eqns if eqn.primitive.name == "cond"]
    assert kept

    class Selected(model):  # type: ignore[misc, valid-type]
        def update(self, x: Any) -> Any:
            return super().update(x)

    def select(taken: Any, first: Any, other: Any, *operands: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), first(*operands), other(*operands))

    original = lax.cond
    try:
        lax.cond = select
        unsafe = built(Selected, 2, False)
        _, grads = bptt(unsafe.model, (unsafe.xs, unsafe.ys), unsafe.loss)
    finally:
        lax.cond = original
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_both_branches_are_taken() -> None:
    case = built(OneBranch, 2, False)
    assert 1 < int((case.xs.sum((1, 2)) > 0.0).sum()) < STEPS - 1


def test_the_input_is_zero_when_the_branch_is_not_taken() -> None:
    """Neither the trace nor the operation sees what the branch would have computed."""
    case = built(LogOfNegative, 2, False)
    learner = compiled(case)
    executor = learner.rule.executor
    for x in case.xs:
        states = {path: s.value for path, s in learner.executor.path_to_states.items()}
        _, new, values = executor.run([x], states)
        jacobians = executor.jacobians_at(values)
        names = [r.weight_path for r in learner.graph.hidden_param_op_relations]
        idle = names.index(("u",) if x.sum() > 0.0 else ("w",))
        assert not np.asarray(jacobians.x[idle]).any()
        assert not np.asarray(jacobians.f[idle]).any()
        assert np.asarray(jacobians.x[1 - idle]).any()
        assert np.asarray(jacobians.f[1 - idle]).any()
        case.model.h.value = new[("h",)]


# --- what is refused ---------------------------------------------------------------------------


def line_of(function: Any, marker: str) -> int:
    """The line in this file of a function's source that holds ``marker``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, text in enumerate(lines) if marker in text)


class Plain(Written):
    def __init__(self) -> None:
        super().__init__(False)


class LongScan(Plain):
    def control(self, x: Any) -> Any:
        def body(y: Any, _: Any) -> Any:
            return 0.5 * y + bt.matmul(x, self.w.value), None  # operation

        return lax.scan(body, self.nothing(), None, length=17)[0]  # loop


class InsideWhile(Plain):
    def control(self, x: Any) -> Any:
        return lax.while_loop(  # loop
            lambda y: y.sum() < 3.0,
            lambda y: y + jnp.abs(bt.matmul(x, self.w.value)),  # operation
            self.nothing(),
        )


class WhileInBranch(Plain):
    def control(self, x: Any) -> Any:
        def loop() -> Any:
            return lax.while_loop(  # loop
                lambda y: y.sum() < 3.0,
                lambda y: y + jnp.abs(bt.matmul(x, self.w.value)),  # operation
                self.nothing(),
            )

        return lax.cond(x.sum() > 0.0, loop, self.nothing)


class CustomInBranch(Plain):
    def control(self, x: Any) -> Any:
        @jax.custom_jvp
        def drive(x: Any, w: Any) -> Any:
            return bt.matmul(x, w)  # operation

        drive.defjvp(lambda primals, tangents: (drive(*primals), drive(tangents[0], primals[1])))
        return lax.cond(x.sum() > 0.0, lambda: drive(x, self.w.value), self.nothing)  # loop


class MappedCond(Plain):
    """A predicate per example: vmap makes a select of the branch, and maps the weights, too."""

    def control(self, x: Any) -> Any:
        def one(x: Any) -> Any:
            return lax.cond(
                x.sum() > 0.0,
                lambda: jnp.tanh(bt.matmul(x, self.w.value)),
                lambda: bt.matmul(jnp.sin(x), self.u.value),
            )

        return jax.vmap(one)(x)


def test_a_mapped_predicate_takes_the_operation_away_aloud() -> None:
    text = "vmap maps an operand of 'etp_mv' other than x"
    with pytest.warns(UserWarning, match=text) as said:
        case = built(MappedCond, 2)
        info = bt.extract_module_info(case.model, case.xs[0])
    assert {w.filename for w in said if text in str(w.message)} == {__file__}
    assert not any(eqn.primitive.name.startswith("etp") for eqn in info.eqns)


SCAN_SAYS = r"has 17 iterations; loops of up to 16 are written out.*scan_unroll_limit=17"
KEPT_OUT = bt.ControlFlowPolicy(scan_descent="off")
OPERATIONS = {
    LongScan: r"inside 'scan' at .*" + SCAN_SAYS + r".*move the operation.*plain product",
    InsideWhile: r"inside 'while' at .*Use jax.lax.scan, or fori_loop with static bounds",
    WhileInBranch: r"inside 'while' at .*Use jax.lax.scan, or fori_loop with static bounds",
    CustomInBranch: r"inside 'custom_jvp_call' at .*cannot be traced",
}


@pytest.mark.parametrize("model", OPERATIONS)
def test_an_operation_that_cannot_be_taken_out_is_refused(model: type) -> None:
    case = built(model, 2)
    with pytest.raises(
        bt.NotSupportedError, match=rf"(?s)'etp_mm' at .*{OPERATIONS[model]}"
    ) as said:
        bt.compile_etrace_graph(case.model, case.xs[0], control_flow=KEPT_OUT)
    for marker in ("# operation", "# loop"):
        assert f"test_rewrite.py:{line_of(model.control, marker)}" in str(said.value)


def test_the_limit_can_be_raised_and_lowered() -> None:
    case = built(LongScan, 2)
    info = bt.extract_module_info(
        case.model, case.xs[0], control_flow=bt.ControlFlowPolicy(scan_unroll_limit=17)
    )
    assert sum(eqn.primitive.name == "etp_mm" for eqn in info.eqns) == 17
    case = built(Loop, 2, False)
    with pytest.raises(bt.NotSupportedError, match="has 3 iterations; loops of up to 0"):
        bt.extract_module_info(
            case.model, case.xs[0], control_flow=bt.ControlFlowPolicy(scan_unroll_limit=0)
        )


class Layers(zoo.Model):
    """Layers stand as a branch and as a body: no line of the user's is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = bt.nn.Linear(IN, HIDDEN), bt.nn.Linear(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        taken = brainstate.transform.cond(x.sum() > 0, self.one, lambda v: 0.1 * self.two(v), x)
        looped = brainstate.transform.for_loop(self.two, jnp.stack([x, x]))
        self.h.value = 0.5 * self.h.value + taken + looped.sum(0)
        return self.h.value


def test_a_layer_as_a_branch_or_a_body_has_a_place() -> None:
    info = bt.extract_module_info(*_initialised(Layers()))
    places = [versions.source_of(eqn) for eqn in info.eqns if eqn.primitive.name == "etp_mm"]
    assert len(places) == 4
    assert all("test_rewrite.py" in place for place in places)


def _initialised(model: Any) -> tuple[Any, Any]:
    brainstate.nn.init_all_states(model, batch_size=2)
    return model, jnp.ones((2, IN))


def test_branches_can_be_refused() -> None:
    case = built(OneBranch, 2, False)
    with pytest.raises(bt.NotSupportedError, match="'etp_mm' at .*inside 'cond' at .*'convert'"):
        bt.extract_module_info(
            case.model, case.xs[0], control_flow=bt.ControlFlowPolicy(cond="refuse")
        )
    case = built(KeptCond, 2, False)
    bt.extract_module_info(case.model, case.xs[0], control_flow=bt.ControlFlowPolicy(cond="refuse"))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"cond": "select"}, ValueError, "cond must be 'convert' or 'refuse', got 'select'"),
        ({"scan_unroll_limit": -1}, ValueError, "scan_unroll_limit must not be negative, got -1"),
        ({"scan_unroll_limit": 2.0}, TypeError, "scan_unroll_limit must be an integer, got 2.0"),
        ({"scan_unroll_limit": True}, TypeError, "scan_unroll_limit must be an integer, got True"),
        ({"cond": "opaque"}, ValueError, "got 'opaque'; an operation in a .* is 'refuse' here"),
        ({"while_hidden": "unroll"}, ValueError, "must be 'opaque-fwd' or 'error', got 'unroll'"),
        ({"etp_in_control_flow": "exclude"}, ValueError, "must be 'error', .*loses its trace has"),
        ({"scan_descent": True}, ValueError, "scan_descent must be 'auto' or 'off', got True"),
        ({"fixpoint_iteration_limit": 0}, ValueError, "fixpoint_.* must be positive, got 0"),
    ],
)
def test_a_policy_checks_itself(options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        bt.ControlFlowPolicy(**options)


def test_the_option_is_a_policy() -> None:
    case = built(OneBranch, 2, False)
    with pytest.raises(TypeError, match="control_flow must be a ControlFlowPolicy, got str"):
        bt.extract_module_info(case.model, case.xs[0], control_flow="convert")


# --- while loops on a differentiable path ------------------------------------------------------


def halved(v: Any, times: Any = 3) -> Any:
    return lax.while_loop(  # loop
        lambda carry: carry[1] < times, lambda carry: (0.5 * carry[0], carry[1] + 1), (v, 0)
    )[0]


class While(Written):
    """``halved`` is a ``while``, or three lines."""

    def halved(self, v: Any) -> Any:
        return 0.5 * (0.5 * (0.5 * v)) if self.by_hand else halved(v)

    hand = property(lambda self: self.control)  # type: ignore[assignment]


class WhileOnTransition(While):
    def control(self, x: Any) -> Any:
        return self.halved(self.h.value) * bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)


class WhileOnTail(While):
    def control(self, x: Any) -> Any:
        return self.halved(bt.matmul(x, self.w.value)) + bt.matmul(x, self.u.value)


class WhileOnOutput(While):
    def update(self, x: Any) -> Any:
        return self.halved(super().update(x))

    def control(self, x: Any) -> Any:
        return bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)


class WhileOnParameter(While):
    def control(self, x: Any) -> Any:
        return bt.matmul(self.halved(x), self.halved(self.w.value)) + bt.matmul(x, self.u.value)


class WhileInScan(While):
    def control(self, x: Any) -> Any:
        def body(h: Any, _: Any) -> Any:
            return jnp.sin(self.halved(h)), None

        h = lax.scan(body, self.h.value, None, length=2)[0]
        return h + bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)


class WhileInKeptBranch(While):
    def control(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)
        return lax.cond(x.sum() > 0.0, self.halved, jnp.sin, self.h.value) + y


class Integrated(While):
    """Two states in steps whose number depends on the input; a key, and a loop inside."""

    names = ("v", "a")

    def update(self, x: Any) -> Any:
        y, scale = bt.matmul(x, self.w.value), self.u.value.mean()
        number = 1 + jnp.int32(10 * jnp.abs(x.sum())) % 5

        def small(i: Any, carry: Any) -> Any:
            v, a, key = carry
            key, now = jax.random.split(key)
            v = v + 0.1 * (y - scale * self.halved(v) + jnp.sin(a))
            noise = 0.1 * jax.random.normal(now, a.shape, "float64")
            return v, a + 0.1 * (v - 0.5 * a) + noise, key

        carry = self.v.value, self.a.value, jax.random.key(0)
        if self.by_hand:
            for i in range(5):
                new = small(i, carry)
                carry = jax.tree.map(lambda a, b, t=i < number: jnp.where(t, a, b), new, carry)
        else:
            carry = lax.fori_loop(0, number, small, carry)
        self.v.value, self.a.value, _ = carry
        return self.v.value * jnp.cos(self.a.value)


WHILES = [
    WhileOnTransition, WhileOnTail, WhileOnOutput, WhileOnParameter, WhileInScan,
    WhileInKeptBranch, Integrated,
]  # fmt: skip


@pytest.mark.parametrize("model", WHILES)
def test_a_derivative_passes_a_while(model: type) -> None:
    by_hand, case = built(model, 2, True), built(model, 2, False)
    data = by_hand.xs, by_hand.ys
    reference = d_rtrl_oracle(by_hand.model, data, by_hand.loss).grads
    if model is not Integrated:  # which reads a parameter in other ways, too
        by_hand.reset()
        assert_tree_close(bptt(by_hand.model, data, by_hand.loss)[1], reference)
    learner = compiled(case)
    kinds = [record.kind.value for record in learner.graph.diagnostics]
    assert "control_flow_opaque_fwd" in kinds
    assert "transition_not_position_wise" not in kinds
    for block in (1, "auto"):
        case.reset()
        learner.reset_state()
        grads = learner.etrace_grad(
            case.xs,
            case.ys,
            step_fn=lambda x, y: case.loss(learner(x), y),
            reduction="sum",
            block_size=block,
        )
        assert_tree_close(grads, reference)


def test_a_while_that_mixes_positions_has_the_true_diagonal() -> None:
    class Mixing(While):
        def control(self, x: Any) -> Any:
            def mixed(v: Any) -> Any:
                return jnp.tanh(v + 0.3 * jnp.roll(v, 1, -1))

            def loop(v: Any) -> Any:
                return lax.fori_loop(0, 2 + jnp.int32(v.sum() > 99), lambda i, v: mixed(v), v)

            h = mixed(mixed(self.h.value)) if self.by_hand else loop(self.h.value)
            return h + bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)

    by_hand, case = built(Mixing, 2, True), built(Mixing, 2, False)
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    with pytest.warns(UserWarning, match="mixes positions"):
        learner = compiled(case)
    grads = learner.etrace_grad(
        case.xs, case.ys, step_fn=lambda x, y: case.loss(learner(x), y), reduction="sum"
    )
    assert_tree_close(grads, oracle.grads)


@pytest.mark.parametrize("model", [WhileOnTransition, WhileInScan, WhileInKeptBranch])
def test_a_while_on_a_differentiable_path_can_be_refused(model: type) -> None:
    case, policy = built(model, 2, False), bt.ControlFlowPolicy(while_hidden="error")
    says = r"pass through 'while' at .*no reverse mode.*jax.lax.scan.*stop_gradient"
    with pytest.raises(bt.NotSupportedError, match=f"(?s){says}") as said:
        bt.compile_etrace_graph(case.model, case.xs[0], control_flow=policy)
    assert f"test_rewrite.py:{line_of(halved, '# loop')}" in str(said.value)


class CountsOnly(Plain):
    """Loops over integers, and floats behind a stopped gradient, are nobody's business."""

    def control(self, x: Any) -> Any:
        times = lax.while_loop(lambda n: n * n < 30, lambda n: n + 1, jnp.int32(x.sum() > 0.0))
        drawn = jax.random.poisson(jax.random.key(0), jnp.exp(self.h.value))
        held = halved(lax.stop_gradient(self.h.value), times)
        late = lax.stop_gradient(halved(self.h.value, times))
        y = bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)
        return y * (1.0 + 0.1 * times + held + late + 0.0 * drawn)


@pytest.mark.parametrize("block", [1, "auto"])
def test_a_while_that_no_derivative_passes_is_fine(block: Any) -> None:
    case = built(CountsOnly, 2)
    learner = compiled(case)
    grads = learner.etrace_grad(
        case.xs, case.ys, step_fn=lambda x, y: case.loss(learner(x), y), block_size=block
    )
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(grads))


# --- the records -------------------------------------------------------------------------------


def kinds(model: type, *args: Any) -> dict[str, list[Any]]:
    case = built(model, 2, *args)
    info = bt.extract_module_info(case.model, case.xs[0])
    found: dict[str, list[Any]] = {}
    for record in info.rewrites:
        found.setdefault(record.kind.value, []).append(record)
    return found


def test_what_was_rewritten_is_recorded() -> None:
    found = kinds(Switch, False)
    (rewritten,) = found["control_flow_rewritten"]
    assert rewritten.primitive == "cond"
    assert f"test_rewrite.py:{line_of(Switch.control, 'return lax.switch')}" in rewritten.source
    inside = found["primitive_inside_control_flow"]
    assert [record.primitive for record in inside] == ["etp_mm"] * 3
    assert f"test_rewrite.py:{line_of(Switch.control, 'inner = ')}" in inside[1].source
    assert "inside 'cond' at " in inside[0].message


def test_a_loop_that_was_written_out_is_recorded() -> None:
    found = kinds(Loop, False)
    (rewritten,) = found["control_flow_rewritten"]
    assert rewritten.primitive == "scan"
    assert "3 iterations are written out" in rewritten.message
    assert len(found["primitive_inside_control_flow"]) == 3


def test_operations_in_calls_are_recorded() -> None:
    records = kinds(Calls, False)["primitive_inside_nested_jit"]
    assert [record.primitive for record in records] == ["etp_mm"] * 3
    assert "inlined" in records[0].message


class WeightInLoop(Plain):
    def control(self, x: Any) -> Any:
        y = lax.scan(  # loop
            lambda y, _: (jnp.tanh(y * self.u.value.mean()), None), self.h.value, None, length=2
        )[0]
        return y + bt.matmul(x, self.w.value)


def test_a_parameter_in_control_flow_that_stays_is_recorded() -> None:
    found = kinds(WeightInLoop)
    (record,) = found["weight_in_control_flow"]
    assert record.weight_path == ("u",)
    assert record.primitive == "scan"
    assert f"test_rewrite.py:{line_of(WeightInLoop.control, '# loop')}" in record.source


def test_a_parameter_in_a_while_is_recorded() -> None:
    found = kinds(Integrated, False)
    assert [r.weight_path for r in found["weight_in_while"]] == [("u",)]
    assert len(found["control_flow_opaque_fwd"]) == 1 and "weight_in_control_flow" not in found


def test_nothing_is_recorded_of_a_model_without() -> None:
    case = zoo.case("gru-2", 2)
    assert bt.extract_module_info(case.model, case.xs[0]).rewrites == ()


def test_a_loop_written_out_can_hand_on_what_it_got() -> None:
    """The new value is the old one: it must become a variable of its own."""

    class Same(Plain):
        def update(self, x: Any) -> Any:
            def body(h: Any, _: Any) -> Any:
                return h, bt.matmul(x, self.w.value)

            self.h.value, ys = lax.scan(body, self.h.value, None, length=2)
            return ys.sum(0)

    case = built(Same, 2)
    info = bt.extract_module_info(case.model, case.xs[0])
    assert info.hidden_path_to_outvar[("h",)] is not info.hidden_path_to_invar[("h",)]
    zoo.check_jaxpr(info.jaxpr)


def test_a_loop_of_no_iterations() -> None:
    class Never(Plain):
        def control(self, x: Any) -> Any:
            def body(y: Any, _: Any) -> Any:
                return y + bt.matmul(x, self.u.value), y

            y, ys = lax.scan(body, self.nothing(), jnp.zeros((0, 2)))
            return y + ys.sum(0) + bt.matmul(x, self.w.value)

    case = built(Never, 2)
    info = bt.extract_module_info(case.model, case.xs[0])
    assert [eqn.primitive.name for eqn in info.eqns].count("etp_mm") == 1
    zoo.check_jaxpr(info.jaxpr)


class Ranked(Plain):
    """A state plus the rank of its entries: only the state carries a derivative."""

    def control(self, x: Any) -> Any:
        ranks = jnp.argsort(jnp.argsort(self.h.value, axis=-1), axis=-1)
        return 0.1 * ranks + bt.matmul(x, self.w.value) + bt.matmul(x, self.u.value)


def test_the_rank_of_a_state_is_a_constant() -> None:
    case = built(Ranked, 2)
    _, reference = bptt(case.model, (case.xs, case.ys), case.loss)
    learner = compiled(case)
    grads = learner.etrace_grad(
        case.xs, case.ys, step_fn=lambda x, y: case.loss(learner(x), y), reduction="sum"
    )
    assert_tree_close(grads, reference)
