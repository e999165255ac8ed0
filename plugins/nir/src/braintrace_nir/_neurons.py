# SPDX-License-Identifier: Apache-2.0
"""The six neurons of NIR: the linear equations of a step, the threshold and the reset.

Between spikes every one of them is linear. With an input that is constant during a step of length
``dt``, with ``e = exp(-dt / tau)`` and likewise ``es``, ``em`` of ``tau_syn``, ``tau_mem``, the
solution after the step is

    I, IF               v' = v + dt r x
    LI, LIF             v' = e v + (1 - e) (v_leak + r x)
    CubaLI, CubaLIF     i' = es i + (1 - es) w_in x
                        v' = em v + (1 - em) v_leak + r (k i + (1 - em - k) w_in x)

with ``k = (es - em) tau_syn / (tau_syn - tau_mem)``, which is ``em dt / tau_mem`` for equal time
constants. ``method="euler"`` is the forward Euler step of the same equations: ``e = 1 - dt / tau``
in each place, and ``k = dt / tau_mem``.

Then ``z = 1`` where ``v' > v_threshold``, and ``v_reset`` takes the place of ``v'``. The state
``v`` is what the potential was before that: the reset is done when the next step begins, so that
``z`` is a function of ``v`` and needs no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace.plugin_api import as_size
from braintrace_elemwise import element_wise

Surrogate = Callable[[jax.Array], Any]

#: The fields of each, as ``nir`` calls them.
FIELDS = {
    "I": ("r",),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
}

TIME_CONSTANTS = ("tau", "tau_syn", "tau_mem")


def fast_sigmoid(x: jax.Array) -> jax.Array:
    """``x / (1 + 25 |x|)``, whose derivative ``1 / (1 + 25 |x|)^2`` is the default surrogate.

    Parameters
    ----------
    x
        Distance to the threshold, of any shape.

    References
    ----------
    F. Zenke, S. Ganguli, "SuperSpike: supervised learning in multilayer spiking neural networks",
    Neural Computation 30 (2018).

    Examples
    --------
    >>> import jax
    >>> float(jax.grad(fast_sigmoid)(0.0))
    1.0
    """
    return x / (1 + 25 * jnp.abs(x))


def spike(distance: jax.Array, surrogate: Surrogate) -> jax.Array:
    """1 where ``distance > 0``, else 0, as NIR says; with the derivative of ``surrogate``."""
    soft = jnp.asarray(surrogate(distance), distance.dtype)
    # the difference is zero, to the last bit, and has the derivative
    return (distance > 0).astype(distance.dtype) + (soft - jax.lax.stop_gradient(soft))


class Elements(brainstate.nn.Module):
    """A node with values position by position: an array of each field, or a ``ParamState``."""

    in_size: Any
    out_size: Any

    def __init__(self, fields: dict[str, Any], train: Collection[str] = ()) -> None:
        super().__init__()  # type: ignore[call-arg]
        self.in_size = self.out_size = np.shape(next(iter(fields.values())))
        self.dtype = jnp.result_type(float)
        self.fields = tuple(fields)
        self.trained = tuple(name for name in fields if name in train)
        for name, value in fields.items():
            trained = name in self.trained
            kept = brainstate.ParamState(jnp.asarray(value, self.dtype)) if trained else value
            setattr(self, name, kept if trained else np.asarray(value, np.float64))

    def value_of(self, name: str) -> Any:
        """A field: an operand where it is trained, one number where it is the same everywhere."""
        if name in self.trained:
            return element_wise(getattr(self, name).value)
        value = getattr(self, name)
        return value.flat[0] if value.size and (value == value.flat[0]).all() else value

    def now(self, name: str) -> jax.Array:
        """The numbers of a field as they are now; zeros where there is none."""
        value: Any = getattr(self, name, np.zeros(self.in_size))
        return jnp.asarray(value.value if name in self.trained else value, self.dtype)


class Neuron(Elements):
    """A neuron of NIR in steps of ``dt``: ``I``, ``IF``, ``LI``, ``LIF``, ``CubaLI``, ``CubaLIF``.

    Parameters
    ----------
    node
        The ``nir`` node. All of its fields have the shape of the layer.
    dt
        Length of a step, in the unit of time of the node's time constants.
    surrogate
        Function of the distance ``v - v_threshold`` whose derivative is that of the spike, for
        example one of ``braintools.surrogate``. The spike itself is 1 where the distance is
        positive, and 0 else.
    reset
        ``"hard"``: ``v_reset`` takes the place of the potential, as NIR says. ``"soft"`` subtracts
        ``v_threshold - v_reset`` instead; such a neuron cannot be exported.
    method
        ``"exact"``: the solution of NIR's equations for an input that is constant during a step.
        ``"euler"``: a forward Euler step; such a neuron cannot be exported.
    train
        Names of fields that are trained, each by an ETP operation. Nothing keeps a time constant
        positive.

    Attributes
    ----------
    v
        ``HiddenState`` [..., *shape], the potential before a reset; there after ``init_state``. It
        begins at ``v_leak``, or at ``v_reset`` where ``v_leak`` is above the threshold, or at zero
        without a leak.
    i
        ``HiddenState`` [..., *shape], the synaptic current of ``CubaLI`` and ``CubaLIF``; it begins
        at zero.

    Raises
    ------
    ValueError
        When a time constant or ``dt`` is not positive, or ``reset`` or ``method`` is another one.
    TypeError
        For a node that is no neuron.

    Notes
    -----
    The module ``_neurons`` has the equations. ``update(x)`` takes and returns [..., *shape]: spikes
    of 0 and 1, or the potential of ``I``, ``LI`` and ``CubaLI``.

    Examples
    --------
    >>> import jax.numpy as jnp, nir, numpy as np
    >>> one = np.ones(3)
    >>> neuron = Neuron(nir.LIF(tau=0.02 * one, r=one, v_leak=0 * one, v_threshold=one), dt=0.001)
    >>> neuron.init_state(batch_size=2)
    >>> neuron(jnp.full((2, 3), 30.0)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    v: Any
    i: Any

    def __init__(
        self,
        node: Any,
        *,
        dt: float,
        surrogate: Surrogate = fast_sigmoid,
        reset: str = "hard",
        method: str = "exact",
        train: Collection[str] = (),
    ) -> None:
        kind = type(node).__name__
        if kind not in FIELDS:
            raise TypeError(f"node must be one of {', '.join(FIELDS)}, got {kind}")
        if reset not in ("hard", "soft") or method not in ("exact", "euler"):
            raise ValueError(
                "reset must be 'hard' or 'soft' and method 'exact' or 'euler', got "
                f"{reset!r} and {method!r}"
            )
        super().__init__({k: getattr(node, k) for k in FIELDS[kind]}, train)
        self.kind = kind
        self.dt, self.surrogate, self.reset, self.method = float(dt), surrogate, reset, method
        if not self.dt > 0:
            raise ValueError(f"dt must be positive, got {dt}")
        for name in TIME_CONSTANTS:
            if name in self.fields and not (np.asarray(getattr(node, name)) > 0).all():
                raise ValueError(f"{name} must be positive everywhere, got {getattr(node, name)}")
        self.fires, self.has_current = "v_threshold" in self.fields, "w_in" in self.fields

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Create the states, [*shape] or [batch_size, *shape]."""
        self.v = brainstate.HiddenState(self._start(batch_size))
        if self.has_current:
            self.i = brainstate.HiddenState(jnp.zeros_like(self.v.value))

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Set the states back to their initial values, [*shape] or [batch_size, *shape]."""
        self.v.value = self._start(batch_size)
        if self.has_current:
            self.i.value = jnp.zeros_like(self.v.value)

    @property
    def is_ready(self) -> bool:
        """Whether ``init_state`` was called."""
        return hasattr(self, "v")

    def _start(self, batch_size: int | None) -> jax.Array:
        start = self.now("v_leak")
        if self.fires:
            above = start > self.now("v_threshold")
            start = jnp.where(above, self.now("v_reset"), start)
        batch = () if batch_size is None else as_size("batch_size", batch_size)
        return jnp.broadcast_to(start, (*batch, *self.in_size))

    def update(self, x: jax.Array) -> jax.Array:
        """What the neurons give after a step with the input ``x`` [..., *shape]."""
        values = {name: self.value_of(name) for name in self.fields}
        c = coefficients(values, self.dt, self.method)
        v = self._combined((c["v_v"], self._after_reset(values)), (c["v_x"], x), (c["v_one"], None))
        if self.has_current:
            i = self.i.value
            v = v + self._combined((c["v_i"], i))
            self.i.value = self._combined((c["i_i"], i), (c["i_x"], x))
        self.v.value = v
        return self.output()

    def _combined(self, *terms: tuple[Any, Any]) -> jax.Array:
        """Sum of products with coefficients; those that are 0 or 1 everywhere cost nothing."""
        total = None
        for c, x in terms:
            if not _is(c, 0):
                term = x if _is(c, 1) and x is not None else self._row(c)
                term = term if x is None or term is x else term * x
                total = term if total is None else total + term
        shape = self.v.value.shape
        return jnp.zeros(shape, self.dtype) if total is None else jnp.broadcast_to(total, shape)

    def _row(self, value: Any) -> jax.Array:
        """A value [*shape], or one for all, with the axes of the states."""
        return on_axes(jnp.asarray(value, self.dtype), self.v.value.ndim)

    def _after_reset(self, values: dict[str, Any]) -> Any:
        v = self.v.value
        if not self.fires:
            return v
        z, reset = self.output(), self._row(values["v_reset"])
        if self.reset == "soft":
            return v - z * (self._row(values["v_threshold"]) - reset)
        return (1 - z) * v + z * reset

    def output(self) -> jax.Array:
        """What the neurons gave in the last step, [..., *shape]; no spike before the first one."""
        v = self.v.value
        if not self.fires:
            return v
        return spike(v - self._row(self.value_of("v_threshold")), self.surrogate)


def on_axes(value: jax.Array, ndim: int) -> jax.Array:
    """A value with axes of size one in front, ``ndim`` in all; a number as it is."""
    return value if value.ndim == 0 else value.reshape((1,) * (ndim - value.ndim) + value.shape)


def coefficients(fields: dict[str, Any], dt: float, method: str) -> dict[str, Any]:
    """The numbers of a linear step: ``b_a`` multiplies the old ``a`` (or 1) in the new ``b``."""
    r = fields["r"]
    if "v_leak" not in fields:
        return {"v_v": 1.0, "v_one": 0.0, "v_x": dt * r}
    kept, gone = _decay(fields.get("tau", fields.get("tau_mem")), dt, method)
    found = {"v_v": kept, "v_one": gone * fields["v_leak"]}
    if "w_in" not in fields:
        return {**found, "v_x": gone * r}
    w_in, tau_syn, tau_mem = (fields[k] for k in ("w_in", "tau_syn", "tau_mem"))
    kept_current, gone_current = _decay(tau_syn, dt, method)
    between = gone
    if method == "exact":
        between = kept * (dt / tau_mem) * _relative_exponential(dt / tau_mem - dt / tau_syn)
    return {
        **found,
        "v_i": r * between,
        "v_x": r * (gone - between) * w_in,
        "i_i": kept_current,
        "i_x": gone_current * w_in,
    }


def _decay(tau: Any, dt: float, method: str) -> tuple[Any, Any]:
    """What is left of a value after a step, and what is gone."""
    if method == "euler":
        return 1 - dt / tau, dt / tau
    numbers = _numbers(tau)
    return numbers.exp(-dt / tau), -numbers.expm1(-dt / tau)


def _relative_exponential(d: Any) -> Any:
    """``(exp(d) - 1) / d``, 1 at zero; ``k = em (dt / tau_mem)`` times it."""
    numbers = _numbers(d)
    small = numbers.abs(d) < 1e-6
    return numbers.where(small, 1 + d / 2, numbers.expm1(d) / numbers.where(small, 1.0, d))


def _numbers(value: Any) -> Any:
    return jnp if isinstance(value, jax.Array) else np


def _is(value: Any, number: float) -> bool:
    return not isinstance(value, jax.Array) and bool(np.all(np.equal(value, number)))
