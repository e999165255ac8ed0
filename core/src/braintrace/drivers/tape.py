# SPDX-License-Identifier: Apache-2.0
"""What takes a learner's one call while a driver traces ``step_fn``: a step that is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ..base import versions
from ..base.types import show_path
from ..compiler.module_info import StateKind
from ..compiler.requirements import checked_args
from .call_arguments import number_of_steps, one_step_of
from .running import Running, read_states, write_states


class Tape:
    """A stepper that runs perturbed steps and records them.

    Nothing but the model may write hidden states of the learner meanwhile.
    """

    def __init__(self, learner: Running, perturb: Sequence[Any]) -> None:
        self.perturb = perturb
        self.recorded: list[tuple[tuple[Any, ...], Any]] = []
        self.hidden = learner.states_of(StateKind.HIDDEN)
        self.values = self._hidden_now()

    def call(self, learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        """Run a step and record the inputs of its Jacobians, and ``given``."""
        if number_of_steps(args) is not None:
            raise ValueError(
                "step_fn passes a MultiStepData; a sequence is taken step by step, pass the "
                "slice that step_fn gets (or chunk_size, with vjp_method='multi-step')"
            )
        leaves = checked_args(learner.graph.module_info, one_step_of(args))
        params, states = read_states(learner)
        self.check_hidden()
        out, new, values = learner.rule.executor.run(leaves, {**states, **params}, self.perturb)
        self.recorded.append((values, given))
        write_states(learner, states, new)
        self.values = self._hidden_now()
        return out

    def _hidden_now(self) -> list[list[Any]]:
        return [jax.tree.leaves(state.value) for state in self.hidden.values()]

    def _elsewhere(self, values: Sequence[Any]) -> bool:
        """Whether one of them is of a transformation inside of ``step_fn``."""
        return any(versions.from_another_trace(value, self.perturb[0]) for value in values)

    def check_hidden(self) -> None:
        """The hidden states are as the model left them.

        Raises
        ------
        ValueError
            When one was written by anything else.
        """
        for path, before, now in zip(self.hidden, self.values, self._hidden_now(), strict=True):
            if self._elsewhere(now):
                return  # inside of a transformation, which is refused in the end
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                raise ValueError(
                    f"step_fn writes the hidden state {show_path(path)}, and the traces would not "
                    "follow. Let the model do it, a reset from an input, say: "
                    "h = h * (1 - done); between sequences call reset_state"
                )

    def step(self) -> tuple[tuple[Any, ...], Any]:
        """The inputs of the Jacobians of the recorded step, and what the caller gave besides.

        Raises
        ------
        ValueError
            When the learner was not called directly and exactly once, or a hidden state was
            written.
        """
        if len(self.recorded) != 1:
            raise ValueError(
                f"step_fn must call the learner exactly once per step; it called it "
                f"{len(self.recorded)} times"
            )
        if self._elsewhere(self.recorded[0][0]):
            raise ValueError(
                "step_fn must call the learner directly, not inside a transformation of its own "
                "(jit, grad, vmap, cond, for_loop, ...); a sequence is compiled as a whole anyway"
            )
        self.check_hidden()
        return self.recorded[0]
