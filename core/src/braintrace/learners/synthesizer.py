# SPDX-License-Identifier: Apache-2.0
"""A learned prediction of the gradient of later losses with respect to hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.types import Path


class SyntheticGradient(brainstate.nn.Module):
    """One affine map per hidden state [.., n], over its last axis: ``g(h) = h W + b``.

    ``W`` [n, n] and ``b`` [n] start at zero: before it has learned, nothing is predicted.

    Parameters
    ----------
    hidden_states
        The hidden states, by path.
    """

    def __init__(self, hidden_states: Mapping[Path, brainstate.State[Any]]) -> None:
        super().__init__()
        self.maps = {
            path: brainstate.ParamState(self._zeros(jax.tree.leaves(state.value)[0]))
            for path, state in hidden_states.items()
        }

    @staticmethod
    def _zeros(hidden: jax.Array) -> dict[str, jax.Array]:
        size = hidden.shape[-1] if hidden.ndim else 1
        return {
            "weight": jnp.zeros((size, size), hidden.dtype),
            "bias": jnp.zeros((size,), hidden.dtype),
        }

    @property
    def states_by_path(self) -> dict[Path, brainstate.State[Any]]:
        """The parameters, by ``('synthesizer', *path)`` of the hidden state."""
        return {("synthesizer", *path): state for path, state in self.maps.items()}

    def values(self) -> dict[Path, Any]:
        """Values of the parameters, by path of the hidden state."""
        return {path: state.value for path, state in self.maps.items()}

    @staticmethod
    def predict(values: Mapping[Path, Any], hidden: Mapping[Path, Any]) -> dict[Path, Any]:
        """Predicted cotangents of hidden values."""

        def one(path: Path, h: jax.Array) -> jax.Array:
            wide = h if h.ndim else h[None]
            found = wide @ values[path]["weight"] + values[path]["bias"]
            return found.reshape(h.shape)

        return {path: one(path, h) for path, h in hidden.items()}
