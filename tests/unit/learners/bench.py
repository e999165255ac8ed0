# SPDX-License-Identifier: Apache-2.0
"""A compiled learner whose states are watched while it is used wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from tests import zoo
from tests.zoo import weight

IN, HIDDEN, BATCH, STEPS = zoo.IN, zoo.HIDDEN, 2, 3


class Mixed(zoo.Model):
    """Every kind of state: hidden, counted, random, parameters with and without a trace."""

    names = ("h", "v")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.out = weight(HIDDEN, 2)
        self.count = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self.noise = brainstate.random.RandomState(7)

    def update(self, x: Any) -> Any:
        self.count.value = self.count.value + 1
        kick = 0.1 * self.noise.uniform(size=(HIDDEN,))
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) + kick
        self.v.value = 0.5 * self.v.value + jnp.sin(self.h.value)
        return bt.matmul(self.v.value, self.out.value)


class Bench:
    """A compiled learner, moved on by a few steps, with its correct call."""

    def __init__(self) -> None:
        brainstate.random.seed(5)
        self.model = Mixed()
        self.learner: Any = None
        brainstate.nn.init_all_states(self.model, batch_size=BATCH)
        rng = np.random.default_rng(6)
        self.xs = jnp.asarray(rng.normal(size=(STEPS, BATCH, IN)))
        self.ys = jnp.asarray(rng.normal(size=(STEPS, BATCH, 2)))
        self.learner = bt.D_RTRL(self.model)
        self.learner.compile_graph(self.xs[0])
        self.learner.etrace_evolve(self.xs)
        self.start = self.states()
        self.reference = self.correct()
        self.restore()

    def objects(self) -> dict[Any, Any]:
        learner = self.learner
        own = (*learner.traces, *learner.filters)
        traces = {("trace", i): state for i, state in enumerate(own)}
        index = {("running_index",): learner.running_index}
        return {**brainstate.graph.states(self.model), **traces, **index}

    def states(self) -> dict[Any, Any]:
        """The value of every state there is."""
        return {path: state.value for path, state in self.objects().items()}

    def restore(self) -> None:
        for path, state in self.objects().items():
            state.value = self.start[path]

    def loss(self, x: Any, y: Any) -> Any:
        return jnp.mean((self.learner(x) - y) ** 2)

    def correct(self) -> Any:
        """Gradients and losses of a correct call, and all states after it."""
        return self.learner.etrace_grad(
            self.xs, self.ys, step_fn=self.loss, return_value=True, block_size=2
        ), self.plain_states()

    def plain_states(self) -> dict[Any, Any]:
        return {"/".join(map(str, path)): value for path, value in self.states().items()}

    def grad(self, *sequences: Any, **options: Any) -> Any:
        options.setdefault("step_fn", self.loss)
        return self.learner.etrace_grad(*(sequences or (self.xs, self.ys)), **options)


_BENCH: list[Bench] = []


@contextmanager
def refused(bench: Bench, error: type[Exception], match: str) -> Iterator[None]:
    """The body raises, changes no state, and a correct call gives what it always gave."""
    before = bench.states()
    try:
        with pytest.raises(error, match=match):
            yield
        after = bench.states()
        assert before.keys() == after.keys()
        for path, value in after.items():
            for old, new in zip(jax.tree.leaves(before[path]), jax.tree.leaves(value), strict=True):
                assert not isinstance(new, jax.core.Tracer), path
                assert jnp.array_equal(old, new), path
        found = bench.correct()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(bench.reference), strict=True):
            assert jnp.array_equal(a, b)
        bench.restore()
    except BaseException:
        _BENCH.clear()  # the next test gets a new one
        raise


@pytest.fixture
def bench() -> Bench:
    if not _BENCH:
        _BENCH.append(Bench())
    return _BENCH[0]


COMPILED = r"compiled for shape \(2, 3\) and dtype float64"
