# SPDX-License-Identifier: Apache-2.0
"""Gradients of a whole sequence, block by block.

The user's ``step_fn`` is traced once. Inside a block, a scan runs its steps: each differentiates
the step's loss with respect to zero perturbations of the hidden states (``l``), to old hidden
values where anything reads them late (``e``), and to parameters where they act directly, and hands
out ``x``, ``f`` and ``D``. Nothing of the size of a trace is touched in the scan. After it, the
learning rule turns the recorded block into cotangents of the operands and, where the trace goes
on, into the next trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.rule import Block, Traces
from ..base.arrays import start_of_sum
from .block import BlockRunner
from .leaves import end_of_sum
from .progress import Progress


@dataclass(frozen=True)
class Extras:
    """What is done after each block besides learning.

    Attributes
    ----------
    flags
        ``flags(block, gradients, traces, direct, losses)``: what is looked for, if anything.
    names
        Names of the state leaves with a direct gradient, for the flags.
    progress
        Whether to show a progress bar.
    """

    flags: Callable[..., Any] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    progress: bool = False

    def seen(self, block: Block, found: Any, traces: Any, direct: Any, losses: Any) -> Any:
        """The flags of a block."""
        if self.flags is None:
            return None
        by_name = {self.names.get(i, str(i)): value for i, value in direct.items()}
        return self.flags(block, found, traces, by_name, losses)


@dataclass(frozen=True)
class Sweep:
    """The outcome of a sequence; ``flags`` have a leading axis of blocks."""

    leaves: list[Any]
    traces: Traces | None
    direct: dict[int, Any]
    operands: list[dict[str, Any]]
    losses: Any
    aux: Any
    flags: Any = None


def sweep(
    runner: BlockRunner,
    leaves: list[Any],
    traces: Traces | None,
    inputs: Any,
    operands: Sequence[Sequence[Any]],
    block_size: int,
    keep_trace: bool,
    scale: Any = 1.0,
    extras: Extras = Extras(),
) -> Sweep:
    """Run a sequence in blocks of ``block_size`` steps and a shorter last one.

    Parameters
    ----------
    traces
        Traces before the sequence; ``None`` for zero.
    inputs
        Pytree of arrays [T, ...].
    operands
        Values of the operands of every relation.
    keep_trace
        Whether the traces after the sequence are wanted.
    scale
        What the gradients are multiplied by.
    extras
        What is done after each block besides.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    full, rest = divmod(steps, block_size)
    rule = runner.rule
    trained = [
        {t.key: operands[r.index][t.position] for t in r.trainables}
        for r in rule.executor.graph.hidden_param_op_relations
    ]

    progress = Progress(full + bool(rest)) if extras.progress else None

    def one_block(carry: Any, inputs: Any, number: Any, last: bool) -> Any:
        leaves, traces, direct, total = carry
        leaves, direct, block, losses, aux = runner.record(leaves, direct, inputs)
        if last and not keep_trace:
            found, traces = rule.solve(traces, block, operands), None
        else:
            found, traces = rule.advance(traces, block, operands)
        total = jax.tree.map(jnp.add, total, found)
        flags = extras.seen(block, found, traces, direct, losses)
        if progress is not None:
            progress.advance(number, losses)
        return (leaves, traces, direct, total), (losses, aux, flags)

    def alone(carry: Any, inputs: Any, number: int, last: bool) -> Any:
        carry, (losses, aux, flags) = one_block(carry, inputs, number, last)
        return carry, (losses, aux, jax.tree.map(lambda v: jnp.asarray(v)[None], flags))

    start = leaves
    carry = (leaves, traces, runner.init_direct(leaves), jax.tree.map(start_of_sum, trained))
    outputs = []
    if full > 1:
        carry = (leaves, rule.init() if traces is None else traces, *carry[2:])
        blocks = jax.tree.map(
            lambda v: v[: full * block_size].reshape(full, block_size, *v.shape[1:]), inputs
        )
        carry, (losses, aux, flags) = jax.lax.scan(
            lambda c, now: one_block(c, now[1], now[0], False), carry, (jnp.arange(full), blocks)
        )
        joined = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (losses, aux))
        outputs.append((*joined, flags))
    elif full == 1:
        head = jax.tree.map(lambda v: v[:block_size], inputs)
        carry, out = alone(carry, head, 0, last=not rest)
        outputs.append(out)
    if rest:
        tail = jax.tree.map(lambda v: v[full * block_size :], inputs)
        carry, out = alone(carry, tail, full, last=True)
        outputs.append(out)
    losses, aux, flags = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
    leaves, traces, direct, total = carry
    direct = {i: end_of_sum(value, start[i], scale) for i, value in direct.items()}
    total = jax.tree.map(lambda v, like: end_of_sum(v, like, scale), total, trained)
    return Sweep(leaves, traces, direct, total, losses, aux, flags)
