# SPDX-License-Identifier: Apache-2.0
"""What a learner records while a driver traces one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..base import versions
from ..base.types import State, show_path


class Tape:
    """What passes between a driver and the learner's one call inside ``step_fn``."""

    def __init__(self, perturb: Sequence[Any], hidden: Mapping[tuple[Any, ...], State]) -> None:
        self.perturb = perturb
        self.boundaries: list[tuple[tuple[Any, ...], Any]] = []
        self._hidden = hidden
        self.keep_hidden()

    def keep_hidden(self) -> None:
        """Remember the values of the hidden states."""
        self._values = [jax.tree.leaves(state.value) for state in self._hidden.values()]

    def check_hidden(self) -> None:
        """The hidden states are as they were remembered.

        Raises
        ------
        ValueError
            When one was written by anything but the model.
        """
        for (path, state), kept in zip(self._hidden.items(), self._values, strict=True):
            now = jax.tree.leaves(state.value)
            if any(versions.from_another_trace(leaf, self.perturb[0]) for leaf in now):
                return  # inside of a transformation, which is refused in the end
            if len(now) != len(kept) or any(a is not b for a, b in zip(now, kept, strict=True)):
                raise ValueError(
                    f"step_fn writes the hidden state {show_path(path)}, and the traces would not "
                    "follow. Let the model do it, a reset from an input, say: "
                    "h = h * (1 - done); between sequences call reset_state"
                )

    def boundary(self) -> tuple[tuple[Any, ...], Any]:
        """Values from which the step's Jacobians are computed, and what the caller gave besides.

        Raises
        ------
        ValueError
            When the learner was not called directly and exactly once.
        """
        if len(self.boundaries) != 1:
            raise ValueError(
                f"step_fn must call the learner exactly once per step; it called it "
                f"{len(self.boundaries)} times"
            )
        if any(versions.from_another_trace(v, self.perturb[0]) for v in self.boundaries[0][0]):
            raise ValueError(
                "step_fn must call the learner directly, not inside a transformation of its own "
                "(jit, grad, vmap, cond, for_loop, ...); a sequence is compiled as a whole anyway"
            )
        return self.boundaries[0]
