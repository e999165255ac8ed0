# SPDX-License-Identifier: Apache-2.0
"""The network that an estimator has when none is given."""

from __future__ import annotations

from typing import Any

import brainstate
import jax

import braintrace


class GRUNetwork(brainstate.nn.Module):
    """A gated recurrent unit and a linear readout.

    Parameters
    ----------
    inputs, outputs
        The numbers of inputs and of outputs, which the estimator gives.
    units
        Hidden units.

    Examples
    --------
    >>> from functools import partial
    >>> import braintrace_river
    >>> model = braintrace_river.RecurrentRegressor(
    ...     partial(braintrace_river.GRUNetwork, units=16), seed=0
    ... )
    >>> model.learn_one({"x": 1.0}, 2.0)
    """

    def __init__(self, inputs: int, outputs: int, units: int = 64) -> None:
        super().__init__()
        self.cell = braintrace.nn.GRUCell(inputs, units)
        self.readout = braintrace.nn.Linear(units, outputs)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, inputs] to [batch, outputs]."""
        return self.readout(self.cell(x))
