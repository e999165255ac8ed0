# SPDX-License-Identifier: Apache-2.0
"""DNI as a learner: a learned prediction of the gradient of later losses at hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from brainstate.nn import Module

from ..algorithms.config import ETraceConfig
from ..base.types import Path
from .vjp import ETraceVjpAlgorithm, preset


class SyntheticGradient(Module):
    """One affine map per hidden state [.., n], over its last axis: ``g(h) = h W + b``.

    ``W`` [n, n] and ``b`` [n] start at zero: before it has learned, nothing is predicted.

    Parameters
    ----------
    hidden_states
        The hidden states, by path.
    """

    def __init__(self, hidden_states: Mapping[Path, brainstate.State[Any]]) -> None:
        super().__init__()
        self.maps: dict[Path, brainstate.State[Any]] = {}
        for path, state in hidden_states.items():
            hidden = jax.tree.leaves(state.value)[0]
            bias = jnp.zeros(hidden.shape[-1:] or (1,), hidden.dtype)
            weight = jnp.zeros(2 * bias.shape, hidden.dtype)
            self.maps[path] = brainstate.ParamState({"weight": weight, "bias": bias})

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
        found = {}
        for path, h in hidden.items():
            wide = h if h.ndim else h[None]
            predicted = wide @ values[path]["weight"] + values[path]["bias"]
            found[path] = predicted.reshape(h.shape)
        return found


class DNI(ETraceVjpAlgorithm):
    """Truncated reverse mode with learned predictions of the future gradient (DNI).

    There is no trace. In a window, the gradient is that of reverse mode, with the prediction
    ``g(h^k)`` of ``d (later losses) / d h^k`` added to the signal at its end, so that the sum over
    all windows is BPTT if ``g`` is right (Jaderberg et al. 2016, arXiv 1608.05343). ``g`` is one
    affine map per hidden state over its last axis, zero at the start. Its parameters are among
    :attr:`param_states`, and their gradient is that of ``|g(h^0) - dL/dh^0|^2 / 2`` at the start of
    each window: any optimizer trains them with the model.

    Parameters
    ----------
    model, **options
        See :class:`ETraceVjpAlgorithm`.
    vjp_method
        ``'multi-step'``.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.DNI, x, batch_size=2)
    >>> learner(braintrace.MultiStepData(jnp.ones((5, 2, 3)))).shape
    (5, 2, 4)
    """

    synthesizer_of = SyntheticGradient

    def __init__(
        self, model: Module, *_late: Any, vjp_method: str = "multi-step", **options: Any
    ) -> None:
        config = ETraceConfig(trace_factorization="none", learning_signal="bootstrapped")
        super().__init__(model, *_late, vjp_method=vjp_method, **preset(config, options))
