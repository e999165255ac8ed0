# SPDX-License-Identifier: Apache-2.0
"""A readout with a memory of its own."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import saiunit

from braintrace.plugin_api import (
    ArrayLike,
    Initializer,
    Size,
    as_size,
    initial_value,
    keyword_key,
    seeded,
)

from ._layers import KAIMING, ZEROS, dense, layer_sizes


class LeakyRateReadout(brainstate.nn.Module):
    """Leaky integrator of a linear map, for example of spikes: ``r' = exp(-dt / tau) r + x W``.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of outputs (the last axis); all other axes must be equal.
    tau
        Time constant, one or [out], in the dimension of ``dt``.
    w_init
        Initial weight [in, out]: a function of the shape, or a value. It may have a unit.
    r_init
        Initial value [out] of the state, the same way, in the unit of ``x W``.
    name
        Name of the module.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    W
        ``ParamState`` with the weight [in, out].
    r
        Hidden state and output, [out] or [batch, out]; there after ``init_state``.
    tau, decay
        The time constant, and ``exp(-dt / tau)``.

    Raises
    ------
    ValueError
        For impossible sizes, an initial value of another shape, a ``tau`` that is not positive,
        or when ``brainstate.environ`` has no ``dt``.
    TypeError
        When ``tau`` and ``dt``, or ``r`` and ``x W``, have different dimensions.
    RuntimeError
        For a call before ``init_state``.

    Notes
    -----
    The step ``dt`` is read from ``brainstate.environ`` when the layer is made. One relation; the
    gradient is that of backpropagation through time.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp, saiunit
    >>> with brainstate.environ.context(dt=1.0 * saiunit.ms):
    ...     readout = braintrace.nn.LeakyRateReadout(3, 2, tau=10.0 * saiunit.ms, key=0)
    >>> readout.init_state(batch_size=4)
    >>> readout(jnp.ones((4, 3))).shape
    (4, 2)
    """

    r: brainstate.HiddenState

    @keyword_key
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        tau: Any = 5.0 * saiunit.ms,
        w_init: Initializer = KAIMING,
        r_init: Initializer = ZEROS,
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(name=name)  # type: ignore[call-arg]
        self.in_size, self.out_size = inputs, outputs = layer_sizes(in_size, out_size)
        self.num_in = inputs[-1]
        self.tau = tau
        self.decay = _decay(tau, outputs[-1])
        self.r_init = r_init
        with seeded(key):
            weight = initial_value("w_init", w_init, (inputs[-1], outputs[-1]))
            self.W = brainstate.ParamState(weight)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Create the state, [out] or [batch_size, out]."""
        self.r = brainstate.HiddenState(self._initial_state(batch_size))

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Set the state back to its initial value, [out] or [batch_size, out]."""
        self._state().value = self._initial_state(batch_size)

    def _initial_state(self, batch_size: int | None) -> Any:
        batch = () if batch_size is None else as_size("batch_size", batch_size)
        return initial_value("r_init", self.r_init, (*batch, *as_size("out_size", self.out_size)))

    def _state(self) -> brainstate.HiddenState:
        if not hasattr(self, "r"):
            raise RuntimeError(
                "LeakyRateReadout has no state 'r' yet: call init_state(batch_size=...) on it, or "
                "brainstate.nn.init_all_states on the model"
            )
        return self.r

    def update(self, x: ArrayLike) -> Any:
        """One step: ``x`` [batch, in] or [in] to the new ``r`` [batch, out] or [out]."""
        r: Any = self._state().value
        given, expected = saiunit.math.shape(x), (*r.shape[:-1], self.num_in)
        if given != expected:
            raise ValueError(
                f"LeakyRateReadout: x has shape {given}, expected {expected} for the state of "
                f"shape {r.shape}; init_state(batch_size=...) sets the batch"
            )
        y = dense(x, self.W.value, None, None)
        unit, needed = saiunit.get_unit(r), saiunit.get_unit(y)
        if not unit.has_same_dim(needed):
            raise TypeError(
                f"LeakyRateReadout: r_init gives the unit {unit}, expected the unit of x @ W, "
                f"{needed}"
            )
        self.r.value = r * jnp.broadcast_to(self.decay, r.shape).astype(r.dtype) + y
        return self.r.value


def _decay(tau: ArrayLike, num_out: int) -> jax.Array:
    """``exp(-dt / tau)``, one or [out]."""
    dt = brainstate.environ.get("dt", None)
    if dt is None:
        raise ValueError(
            "LeakyRateReadout: brainstate.environ has no dt; set it with "
            "brainstate.environ.set(dt=...) or make the layer in brainstate.environ.context(dt=...)"
        )
    unit, own = saiunit.get_unit(dt), saiunit.get_unit(tau)
    if not own.has_same_dim(unit):
        raise TypeError(f"tau has the unit {own}, expected the unit of dt, {unit}")
    if saiunit.math.shape(tau) not in ((), (1,), (num_out,)):
        raise ValueError(
            f"tau has shape {saiunit.math.shape(tau)}, expected one value or ({num_out},)"
        )
    with jax.ensure_compile_time_eval():  # a number, also where the model is made under jit
        steps = jnp.asarray(saiunit.get_mantissa(saiunit.Quantity(tau) / saiunit.Quantity(dt)))
        if not bool((steps > 0).all()):
            raise ValueError(f"tau must be positive, got {tau}")
        return jnp.exp(-1.0 / steps)
