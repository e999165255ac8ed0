# SPDX-License-Identifier: Apache-2.0
"""Three-factor learning: a modulator in place of the learning signal."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..algorithms.config import ETraceConfig, preset
from ..base import versions
from .vjp import ETraceVjpAlgorithm


class StandingModulator(brainstate.ShortTermState):
    """The modulator that was assigned to a learner as a number or an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return jnp.shape(self.value)


class ThreeFactor(ETraceVjpAlgorithm):
    """Three-factor learning: a modulator takes the place of the learning signal.

    ``dL/dw = sum_t <m^t, eps^t>`` with the trace ``eps`` of D-RTRL, and ``m`` the same for every
    state of a position (Fremaux & Gerstner, Frontiers in Neural Circuits 9:85, 2016). Parameters
    without a trace, and what a parameter does besides, get the gradient of the loss. The result is
    a gradient to descend: reward is a negative modulator.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    modulator
        Its value for calls that are given none: a number, an array, or a brainstate state, which
        is read at every call. ``learner.modulator = ...`` changes it.
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` is modulatory, too.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.ThreeFactor(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(jnp.ones((2, 3)), modulator=0.5).shape
    (2, 4)
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        vjp_method: str = "single-step",
        modulator: Any = None,
        **options: Any,
    ) -> None:
        config = ETraceConfig(learning_signal="modulatory")
        config = preset(config, options, "learning_signal")
        super().__init__(model, vjp_method, config=config, **options)
        self._modulator: brainstate.State[Any] | None = None
        self.modulator = modulator

    @property
    def modulator(self) -> Any:
        """The modulator of calls that are given none; it can be assigned between calls."""
        own = isinstance(self._modulator, StandingModulator)
        return self._modulator.value if own and self._modulator is not None else self._modulator

    @modulator.setter
    def modulator(self, value: Any) -> None:
        if value is not None and not isinstance(value, brainstate.State):
            value, standing = jnp.asarray(value, float), self._modulator
            same = isinstance(standing, StandingModulator) and standing.shape == value.shape
            if standing is not None and same:
                standing.value = value  # compiled programs read it from there
                return
            if versions.is_traced(value):
                raise ValueError(
                    f"modulator of shape {value.shape} is assigned for the first time inside of a "
                    "transformation; pass it to the call, learner(x, modulator=...), or assign an "
                    "array of this shape before"
                )
            value = StandingModulator(value)
        if value is not self._modulator:
            self._modulator = value
            self._drivers.clear()

    def update(self, *args: Any, modulator: Any = None) -> Any:
        """Run the model and the traces for one step; see :meth:`ETraceAlgorithm.update`.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for.
        modulator
            A number, or an array that broadcasts to the positions of every hidden group; default:
            the learner's own.

        Raises
        ------
        ValueError
            When there is no modulator, or it does not fit a group.
        """
        standing = self._modulator if modulator is None else modulator
        if isinstance(standing, brainstate.State):
            standing = standing.value
        if standing is None:
            raise ValueError("ThreeFactor needs a modulator: learner(x, modulator=...)")
        return self._run(args, given=tuple(self._for_groups(jnp.asarray(standing, float))))

    def _for_groups(self, modulator: jax.Array) -> list[jax.Array]:
        shapes = [group.varshape for group in self.graph.hidden_groups]
        for shape in shapes:
            try:
                fits = jnp.broadcast_shapes(modulator.shape, shape) == shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"modulator has shape {modulator.shape}, which does not broadcast to the "
                    f"positions {shape} of every hidden group"
                )
        return [jnp.broadcast_to(modulator, shape) for shape in shapes]
