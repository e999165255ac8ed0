# SPDX-License-Identifier: Apache-2.0
"""A step's transition as a function of signals: ``D^T a`` and ``f^T a`` without ``D`` and ``f``.

Where the states of a group are many, as with a long delay line, one reverse sweep costs less than
looking at the matrices does. What it needs of a step (the derivatives of the equations on the way)
is recorded in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .layout import Positions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Pulled:
    """Reverse mode of the new values of a group in its old ones and in each ``y``.

    Attributes
    ----------
    pull
        ``pull(members) -> (of old values, of each y by link)``.
    of_olds
        In the coupled scope, ``pull(members) -> (of old values,)`` of the transition.
    past
        Whether there is anything before the step.
    positions
        The group.
    """

    pull: Any
    of_olds: Any
    past: Any
    positions: Positions = field(metadata={"static": True})

    def __call__(self, signal: jax.Array) -> tuple[jax.Array, dict[int, jax.Array]]:
        """``D^T a`` [S, *V], and ``f^T a`` [*Y] by link, of a signal ``a`` [S, *V]."""
        members = self.positions.members(signal)
        olds, ys = self.pull(members)
        if self.of_olds is not None:
            (olds,) = self.of_olds(members)
        found = self.positions.stacked(olds) if olds else jnp.zeros_like(signal)
        return jnp.where(self.past, found, 0).astype(signal.dtype), ys
