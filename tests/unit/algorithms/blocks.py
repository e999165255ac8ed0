# SPDX-License-Identifier: Apache-2.0
"""Blocks of random numbers for the executor of a small model, and D-RTRL of them by loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from braintrace.algorithms import Block
from braintrace.executor.executor import Executor
from tests import zoo

BATCH, IN, HIDDEN, STEPS = 2, zoo.IN, zoo.HIDDEN, 4
Ready = tuple[Executor, list[list[Any]]]


class Recurrent(zoo.Leaky):
    """h <- tanh([x, h] W): positions depend on one another through the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.w = zoo.weight(IN + HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        joined = jnp.concatenate([x, self.h.value], -1)
        self.h.value = jnp.tanh(bt.matmul(joined, self.w.value))
        return self.h.value


def ready(model: Any = None, algorithm: Any = "d_rtrl", **options: Any) -> Ready:
    """The executor of a compiled model, and the values of its operands."""
    x = np.ones((BATCH, IN))
    options = {"downstream": "step", **options}
    learner = bt.compile(model or zoo.Leaky(), algorithm, x, batch_size=BATCH, **options)
    executor = learner.rule.executor
    params = {path: state.value for path, state in learner.param_states.items()}
    return executor, executor.operand_values(params)


def block_of(executor: Executor, steps: int = STEPS, old: bool = True, seed: int = 0) -> Block:
    """Random ``x``, ``f``, ``D`` and signals."""
    rng = np.random.default_rng(seed)

    def drawn(shape: tuple[int, ...]) -> Any:
        return 0.7 * rng.normal(size=(steps, *shape))

    jacobians = jax.tree.map(lambda v: drawn(v.shape), executor.jacobian_types)
    shapes = [(g.num_state, *g.varshape) for g in executor.groups]
    olds = tuple(drawn(s) if old else None for s in shapes)
    return Block(jacobians, tuple(map(drawn, shapes)), olds)


def part(block: Block, start: int, stop: int | None) -> Block:
    """Some steps of a block."""
    return Block(*jax.tree.map(lambda v: v[start:stop], tuple(block)))


def by_loops(block: Block, kappa: float = 0.0, mask: Any = 1.0) -> tuple[Any, Any, Any]:
    """The gradient of the only relation [in, out], its trace [S, B, in, out], the filtered one.

    ``D`` is [K, S, S, *kept], ``f`` [K, S, B, out], with B or nothing among ``kept``.
    """
    (x,), (f,), (D,) = block.jacobians
    (signal,), (old,) = block.signal, block.old_signal
    states = f.shape[1]

    def wide(v: Any) -> Any:  # [.., B] for all of out
        if v.shape[-2:] == f.shape[-2:]:
            return v
        return np.broadcast_to(v[..., None], (*v.shape, f.shape[-1]))

    D, signal, old = wide(D), wide(signal), None if old is None else wide(old)
    eps = ebar = np.zeros((states, x.shape[1], x.shape[2], f.shape[-1]))
    total = np.zeros(eps.shape[2:])
    for t in range(len(x)):
        if old is not None:
            total += np.einsum("sbo,sbio->io", old[t], ebar)
        moved = np.einsum("rsbo,sbio->rbio", D[t], eps)
        eps = mask * moved + np.einsum("sbo,bi->sbio", f[t], x[t])
        ebar = kappa * ebar + eps
        total += np.einsum("sbo,sbio->io", signal[t], ebar)
    return total, eps, ebar
