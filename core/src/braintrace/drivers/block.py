# SPDX-License-Identifier: Apache-2.0
"""The steps of one block: run, recorded, and turned into gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.rule import Block, LearningRule
from ..base.arrays import start_of_sum
from ..base.types import State
from .recorded import recorded_scan
from .traced import TracedStep

# --- running blocks --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BlockRunner:
    """Runs blocks of a traced step.

    Attributes
    ----------
    rule
        The learning rule.
    step
        The traced step.
    targets
        The parameter states whose gradients are wanted.
    """

    rule: LearningRule
    step: TracedStep
    targets: tuple[State, ...]

    @property
    def _direct(self) -> list[int]:
        """State leaves that are parameters with a direct gradient."""
        return [i for state in self.targets for i in self.step.live_leaves(state)]

    def _late(self) -> dict[int, list[int]]:
        """Per group, the leaves of its old values where the loss reads them late."""
        found = {}
        for group in self.rule.executor.graph.hidden_groups:
            leaves = [i for s in group.hidden_states for i in self.step.live_leaves(s)]
            if leaves:
                found[group.index] = leaves
        return found

    def init_direct(self, leaves: Sequence[Any]) -> dict[int, Any]:
        """Zeros for the direct gradients, by state leaf."""
        return {i: start_of_sum(leaves[i]) for i in self._direct}

    def record(
        self, leaves: list[Any], direct: dict[int, Any], inputs: Any
    ) -> tuple[list[Any], dict[int, Any], Block, Any, Any]:
        """Run ``K`` steps: states and direct gradients move on, the rest is recorded.

        Returns
        -------
        leaves, direct, block, losses, aux
        """
        executor = self.rule.executor
        perturb = executor.graph.perturbed.init_perturb_data()
        late = sorted({i for indices in self._late().values() for i in indices})
        chosen = [i for i in self._direct if self.step.is_step_by_step(i)]
        shifts = self.step.direct.shifts()

        def one(carry: Any, inputs: Any) -> Any:
            leaves, direct = carry

            def loss_of(perturb: Any, olds: Any, params: Any, shifts: Any) -> Any:
                full = list(leaves)
                for i, value in {**olds, **params}.items():
                    full[i] = value
                loss, *rest = self.step.run(perturb, inputs, full, shifts)
                return loss, rest

            (loss, (aux, boundary, new, moving)), (signal, olds, params, dys) = jax.value_and_grad(
                loss_of, argnums=(0, 1, 2, 3), has_aux=True
            )(perturb, {i: leaves[i] for i in late}, {i: leaves[i] for i in chosen}, shifts)
            values, given = boundary
            jacobians = executor.jacobians_at(values)
            direct = {i: value + params[i] for i, value in direct.items()}
            signals = executor.signals(signal), self._late_signals(olds, leaves)
            step = Block(jacobians, *signals, given)
            return (new, direct), (step, moving, dys, loss, aux)

        start = leaves, {i: direct[i] for i in chosen}
        (new, stepwise), found = recorded_scan(one, start, inputs)
        block, moving, dys, losses, aux = found
        direct = {**direct, **stepwise}
        for i, value in self.step.products(leaves, moving, dys).items():
            direct[i] = direct[i] + value
        return new, direct, block, losses, aux

    def _late_signals(
        self, olds: Mapping[int, Any], leaves: Sequence[Any]
    ) -> tuple[jax.Array | None, ...]:
        executor, late = self.rule.executor, self._late()
        gradients = {}
        for group in executor.graph.hidden_groups:
            for path, state in zip(group.hidden_paths, group.hidden_states, strict=True):
                for i in self.step.leaves_of(state) or ():
                    gradients[path] = olds.get(i, jnp.zeros_like(leaves[i]))
        return executor.old_signals(gradients, late)
