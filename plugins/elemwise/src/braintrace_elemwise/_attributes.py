# SPDX-License-Identifier: Apache-2.0
"""Numbers of a module that are trained: time constants, thresholds and other attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import saiunit

from braintrace.plugin_api import real_array, with_unit

from ._ops import element_wise


class TrainedAttribute:
    """An attribute of a module that is a parameter with a trace: a time constant, a threshold.

    Modules that compute with ``self.tau`` need no other change: a subclass declares the attribute,
    and whatever the constructor assigns to it is the initial value. The parameter ``w`` is a
    ``ParamState`` named ``tau_param``, and ``self.tau`` is ``fn(w)`` in the unit of that value,
    marked by :func:`braintrace.element_wise`.

    Parameters
    ----------
    fn
        From the parameter to the attribute: by default ``jax.numpy.exp``, so that it stays
        positive, and steps of an optimizer are relative.
    inverse
        From the attribute to the parameter: ``fn(inverse(value)) == value``.

    Raises
    ------
    TypeError
        When ``fn`` or ``inverse`` is no function, or what is assigned is no real floating-point
        number, array or quantity.
    ValueError
        When ``inverse`` of what is assigned is not finite, as the logarithm of a negative number,
        or ``fn`` of it is another value.

    Notes
    -----
    The parameter has the shape of what is assigned: one number for all neurons, or one for each. A
    later assignment gives the same parameter another value; it must have its shape and dimension.
    With what is trained the gradient is that of backpropagation through time, wherever the
    neurons of a layer do not act on one another. A start value that ``init_state`` computes from
    the attribute follows it at each reset and is a constant to gradients: what the attribute does
    to the start does not count, what it does in steps does.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp, saiunit as u
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self, tau):
    ...         super().__init__()
    ...         self.tau = tau
    >>> class Trained(Leaky):
    ...     tau = braintrace.nn.TrainedAttribute()
    >>> neurons = Trained(jnp.array([10.0, 20.0]) * u.ms)
    >>> print(neurons.tau, neurons.tau_param.value.shape)
    [10. 20.] ms (2,)
    """

    def __init__(
        self,
        fn: Callable[[Any], Any] = jnp.exp,
        inverse: Callable[[Any], Any] = jnp.log,
    ) -> None:
        functions: dict[str, Any] = {"fn": fn, "inverse": inverse}
        for name, function in functions.items():
            if not callable(function):
                kind = type(function).__name__
                raise TypeError(f"TrainedAttribute: {name} must be a function, got {kind}")
        self.fn, self.inverse = fn, inverse

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        if module is None:
            return self
        state = vars(module).get(f"{self.name}_param")
        if state is None:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {self.name!r}")
        unit = vars(module)[f"{self.name}_unit"]
        number: Any = element_wise(state.value, self.fn)
        return with_unit(number, unit)

    def __set__(self, module: Any, value: Any) -> None:
        number, unit = real_array(type(module).__name__, self.name, value)
        state: Any = vars(module).get(f"{self.name}_param")
        if state is not None:
            unit = vars(module)[f"{self.name}_unit"]
            number = saiunit.get_mantissa(saiunit.Quantity(value).in_unit(unit))
        parameter: Any = self.inverse(number)
        if not isinstance(parameter, jax.core.Tracer):  # nothing is known of it inside of a jit
            self._require_start(type(module).__name__, value, number, parameter)
        if state is None:
            setattr(module, f"{self.name}_unit", unit)
            setattr(module, f"{self.name}_param", brainstate.ParamState(parameter))
        elif parameter.shape != state.value.shape:
            raise ValueError(
                f"{self.name} of {type(module).__name__} has the shape {state.value.shape}, "
                f"got {parameter.shape}"
            )
        else:
            state.value = parameter

    def _require_start(self, owner: str, value: Any, number: Any, parameter: Any) -> None:
        """Raise unless ``parameter`` is finite and ``fn`` of it is ``number``."""
        if not jnp.isfinite(parameter).all():
            raise ValueError(
                f"{self.name} of {owner} cannot start at {value}: inverse of that is not finite"
            )
        if not jnp.allclose(self.fn(parameter), number, rtol=0.05, atol=1e-6):
            raise ValueError(
                f"{self.name} of {owner} cannot start at {value}: fn of inverse of "
                f"that is {self.fn(parameter)} instead; fn and inverse must undo one another"
            )
