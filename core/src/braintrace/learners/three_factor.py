# SPDX-License-Identifier: Apache-2.0
"""Three-factor learning: a modulator in place of the learning signal."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp

from ..algorithms.config import ETraceConfig
from ..base import versions
from .vjp import ETraceVjpAlgorithm, preset


class StandingModulator(brainstate.ShortTermState):
    """The modulator that was assigned to a learner as a number or an array."""


def standing_modulator(learner: Any) -> Any:
    """The modulator of calls that are given none; it can be assigned between calls."""
    standing = learner._modulator
    return standing.value if isinstance(standing, StandingModulator) else standing


def assign_modulator(learner: Any, value: Any) -> None:
    """Take a number, an array, or a state, which is read at every call."""
    if value is not None and not isinstance(value, brainstate.State):
        value, standing = jnp.asarray(value, float), learner._modulator
        own = isinstance(standing, StandingModulator)
        if own and jnp.shape(standing.value) == value.shape:
            standing.value = value  # compiled programs read it from there
            return
        if versions.is_traced(value):
            raise ValueError(
                f"modulator of shape {value.shape} is assigned for the first time inside of a "
                "transformation; pass it to the call, learner(x, modulator=...), or assign an "
                "array of this shape before"
            )
        value = StandingModulator(value)
    if value is not learner._modulator:
        learner._modulator = value
        learner._drivers.clear()


def arguments_and_modulator(learner: Any, args: tuple[Any, ...], modulator: Any = None) -> Any:
    """What calls take: a modulator for the positions of every group, or that of the learner."""
    standing = learner._modulator if modulator is None else modulator
    if isinstance(standing, brainstate.State):
        standing = standing.value
    if standing is None:
        raise ValueError("ThreeFactor needs a modulator: learner(x, modulator=...)")
    standing = jnp.asarray(standing, float)
    given = []
    for shape in (group.varshape for group in learner.graph.hidden_groups):
        try:
            given.append(jnp.broadcast_to(standing, shape))
        except ValueError:
            raise ValueError(
                f"modulator has shape {standing.shape}, which does not broadcast to the "
                f"positions {shape} of every hidden group"
            ) from None
    return learner.run_call(args, given=tuple(given))


class ThreeFactor(ETraceVjpAlgorithm):
    """Three-factor learning: a modulator takes the place of the learning signal.

    ``dL/dw = sum_t <m^t, eps^t>`` with the trace ``eps`` of D-RTRL, and ``m`` the same for every
    state of a position (Fremaux & Gerstner, Frontiers in Neural Circuits 9:85, 2016). Parameters
    without a trace, and what a parameter does besides, get the gradient of the loss. The result is
    a gradient to descend: reward is a negative modulator.

    Parameters
    ----------
    modulator
        Its value for calls that are given none: a number, an array, or a brainstate state, which
        is read at every call. ``learner.modulator = ...`` changes it. Calls take another one,
        ``learner(x, modulator=...)``: a number, or an array that broadcasts to the positions of
        every hidden group.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` is modulatory, too.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.ThreeFactor, x, batch_size=2)
    >>> learner(x, modulator=0.5).shape
    (2, 4)
    """

    call_takes = staticmethod(arguments_and_modulator)
    modulator = property(standing_modulator, assign_modulator)

    def __init__(
        self, model: brainstate.nn.Module, *_late: Any, modulator: Any = None, **options: Any
    ) -> None:
        config = ETraceConfig(learning_signal="modulatory")
        super().__init__(model, *_late, **preset(config, options, "learning_signal"))
        self._modulator: brainstate.State[Any] | None = None
        self.modulator = modulator
