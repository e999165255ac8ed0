# SPDX-License-Identifier: Apache-2.0
"""The steps of a sequence, block by block: run, recorded, and turned into gradients.

Inside a block, a scan runs its steps: each differentiates the step's loss with respect to zero
perturbations of the hidden states (``l``), to old hidden values where anything reads them late
(``e``), and to parameters where they act directly, and hands out ``x``, ``f`` and ``D``. Nothing of
the size of a trace is touched in the scan. After it, the learning rule turns the recorded block
into cotangents of the operands and, where the trace goes on, into the next trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Block, LearningRule
from ..base.types import State, start_of_sum
from .cotangents import end_of_sum
from .in_parts import in_parts
from .recorded import recorded_scan
from .traced import TracedStep


@dataclass(frozen=True, eq=False)
class BlockRunner:
    """Runs blocks of a traced step, for gradients of the parameter states ``targets``."""

    rule: LearningRule
    step: TracedStep
    targets: tuple[State, ...]

    @cached_property
    def direct(self) -> tuple[int, ...]:
        """State leaves that are parameters with a direct gradient."""
        return tuple(i for state in self.targets for i in self.step.live_leaves(state))

    @cached_property
    def read_late(self) -> dict[int, list[int]]:
        """Per group, the leaves of its old values where the loss reads them late."""
        found = {
            group.index: [i for s in group.hidden_states for i in self.step.live_leaves(s)]
            for group in self.rule.executor.graph.hidden_groups
        }
        return {group: leaves for group, leaves in found.items() if leaves}

    def record(
        self, leaves: Mapping[int, Any], direct: Mapping[int, Any], inputs: Any
    ) -> tuple[dict[int, Any], dict[int, Any], Block, Any, Any]:
        """Run ``K`` steps: ``leaves`` and ``direct`` move on; then come block, losses and aux."""
        executor = self.rule.executor
        perturb = executor.graph.perturbed.init_perturb_data()
        late = sorted({i for indices in self.read_late.values() for i in indices})
        chosen = [i for i in self.direct if i in self.step.direct.elsewhere]
        shifts = self.step.direct.shifts()

        def one(carry: Any, inputs: Any) -> Any:
            leaves, direct = carry

            def loss_of(perturb: Any, olds: Any, params: Any, shifts: Any) -> Any:
                changed = {**leaves, **olds, **params}
                loss, *rest = self.step.run(perturb, inputs, changed, shifts)
                return loss, rest

            (loss, (aux, recorded, new, moving)), (signal, olds, params, dys) = jax.value_and_grad(
                loss_of, argnums=(0, 1, 2, 3), has_aux=True
            )(perturb, {i: leaves[i] for i in late}, {i: leaves[i] for i in chosen}, shifts)
            values, given = recorded
            jacobians = executor.jacobians_at(values)
            direct = {i: value + params[i] for i, value in direct.items()}
            signals = executor.signals(signal), self._old_signals(olds, leaves)
            return (new, direct), (Block(jacobians, *signals, given), moving, dys, loss, aux)

        start = leaves, {i: direct[i] for i in chosen}
        (new, stepwise), (block, moving, dys, losses, aux) = recorded_scan(one, start, inputs)
        total = {**direct, **stepwise}
        for i, value in self.step.direct.gradients(leaves, moving, dys).items():
            total[i] = total[i] + value
        return new, total, block, losses, aux

    def _old_signals(
        self, olds: Mapping[int, Any], leaves: Mapping[int, Any]
    ) -> tuple[jax.Array | None, ...]:
        gradients = {
            path: olds.get(i, jnp.zeros_like(leaves[i]))
            for group in self.rule.executor.graph.hidden_groups
            for path, state in zip(group.hidden_paths, group.hidden_states, strict=True)
            for i in self.step.leaves.get(state, ())
        }
        return self.rule.executor.old_signals(gradients, self.read_late)


def in_blocks(
    runner: BlockRunner,
    carry: tuple[Any, Any],
    inputs: Any,
    operands: Sequence[Sequence[Any]],
    size: int,
    keep_trace: bool,
    scale: Any,
    after: Callable[..., Any],
) -> tuple[Any, Any]:
    """Run a sequence in blocks of ``size`` steps and a shorter last one.

    Parameters
    ----------
    carry
        State leaves, and traces, before the sequence; ``None`` for traces of zero.
    operands, scale
        Values of the operands of every relation, and what the gradients are multiplied by.
    after
        ``after(number, block, cotangents, traces, direct, losses)``: what to return of a block.

    Returns
    -------
    ``(leaves, traces, direct, cotangents), (losses, aux, what after returned)``
    """
    rule, (start, traces) = runner.rule, carry
    steps = jax.tree.leaves(inputs)[0].shape[0]
    trained = [
        {t.key: operands[r.index][t.position] for t in r.trainables}
        for r in rule.executor.graph.hidden_param_op_relations
    ]

    def one_block(carry: Any, numbered: Any) -> Any:
        (leaves, traces, direct, total), (number, inputs) = carry, numbered
        leaves, direct, block, losses, aux = runner.record(leaves, direct, inputs)
        if isinstance(number, int) and number == (steps - 1) // size and not keep_trace:
            found, traces = rule.solve(traces, block, operands), None
        else:
            found, traces = rule.advance(traces, block, operands)
        seen = after(number, block, found, traces, direct, losses)
        total = jax.tree.map(jnp.add, total, found)
        return (leaves, traces, direct, total), (losses, aux, seen)

    if steps >= 2 * size and traces is None:
        traces = rule.init()
    direct = {i: start_of_sum(start[i]) for i in runner.direct}
    first = (start, traces, direct, jax.tree.map(start_of_sum, trained))
    end, found = in_parts(one_block, first, inputs, size, jax.lax.scan, least=2)
    leaves, traces, direct, total = end
    direct = {i: end_of_sum(value, start[i], scale) for i, value in direct.items()}
    total = jax.tree.map(lambda v, like: end_of_sum(v, like, scale), total, trained)
    return (leaves, traces, direct, total), found
