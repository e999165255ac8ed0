# SPDX-License-Identifier: Apache-2.0
"""The linear recurrent unit: a diagonal complex recurrence between two dense maps."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from brainstate import random
from brainstate.nn import init

from braintrace.plugin_api import as_count, keyword_key, seeded

from ._cell import Cell, per_unit
from ._layers import ZEROS, Linear


class LRUCell(Cell):
    """Linear recurrent unit of Orvieto et al. (2023).

    ::

        lam = exp(-exp(nu_log) + 1j * exp(theta_log))
        h'  = lam * h + exp(gamma_log) * (x B_re + 1j * x B_im)
        y   = real(h' (C_re + 1j * C_im)) + D * x

    in real numbers: real and imaginary part of the hidden state are two states, and those of the
    maps two layers. Five relations, of ``nu_log``, ``theta_log``, ``gamma_log``, ``B_re`` and
    ``B_im``; the readout has the ordinary gradient. The recurrence is position by position, so
    D-RTRL gives the gradient of backpropagation through time.

    Parameters
    ----------
    d_model
        Number of inputs and of outputs.
    d_hidden
        Number of hidden units.
    r_min, r_max
        ``|lam|`` starts uniformly in the ring between these radii, ``0 <= r_min <= r_max <= 1``.
    max_phase
        The phase of ``lam`` starts uniformly in ``[0, max_phase]``.
    name
        Name of the module.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    nu_log, theta_log, gamma_log
        ``ParamState`` [d_hidden] each; ``gamma_log`` starts where it normalises the input.
    B_re, B_im, C_re, C_im
        The :class:`Linear` layers, without bias. Their weights start normal, with the variance
        ``1 / d_model`` in ``B`` and ``1 / d_hidden`` in ``C``, in each of both parts.
    D
        ``ParamState`` [d_model].
    h_re, h_im
        Hidden states [d_hidden] or [batch, d_hidden].

    Raises
    ------
    ValueError
        For impossible sizes, radii or phases, and for an ``x`` of another shape.
    TypeError
        For an ``x`` with a unit.
    RuntimeError
        For a call before ``init_state``.

    References
    ----------
    A. Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML 40 (2023),
    arXiv:2303.06349.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.LRUCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 3)
    """

    hidden_names = ("h_re", "h_im")
    h_re: brainstate.HiddenState
    h_im: brainstate.HiddenState

    @keyword_key
    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 6.28,
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        model, hidden = as_count("d_model", d_model), as_count("d_hidden", d_hidden)
        super().__init__(model, model, ZEROS, name)
        self._hidden_size = (hidden,)
        self.d_model, self.d_hidden = model, hidden
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase
        with seeded(key):
            radius, phase = _ring(r_min, r_max, hidden), _phase(max_phase, hidden)
            self.nu_log = brainstate.ParamState(jnp.log(-jnp.log(radius)))
            self.theta_log = brainstate.ParamState(jnp.log(phase))
            self.gamma_log = brainstate.ParamState(0.5 * jnp.log1p(-(radius**2)))
            to_hidden = init.Normal(scale=model**-0.5)
            self.B_re = self._linear(model, to_hidden)
            self.B_im = self._linear(model, to_hidden)
            of_hidden = init.Normal(scale=hidden**-0.5)
            self.C_re = Linear(hidden, model, w_init=of_hidden, b_init=None)
            self.C_im = Linear(hidden, model, w_init=of_hidden, b_init=None)
            self.D = brainstate.ParamState(init.Normal(scale=1.0)((model,)))

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, d_model] or [d_model] to an output of the same shape."""
        x, h_re, h_im = self._read(x)
        nu = per_unit(self.nu_log.value, h_re.shape)
        theta = jnp.exp(per_unit(self.theta_log.value, h_re.shape))
        gamma = jnp.exp(per_unit(self.gamma_log.value, h_re.shape))
        radius = jnp.exp(-jnp.exp(nu))
        lam_re, lam_im = radius * jnp.cos(theta), radius * jnp.sin(theta)
        self.h_re.value = lam_re * h_re - lam_im * h_im + gamma * self.B_re(x)
        self.h_im.value = lam_re * h_im + lam_im * h_re + gamma * self.B_im(x)
        y = self.C_re(self.h_re.value) - self.C_im(self.h_im.value)
        return y + per_unit(self.D.value, x.shape) * x


def _open_unit(units: int) -> jax.Array:
    """Uniform in (0, 1): both ends would be infinite as a logarithm."""
    eps = float(jnp.finfo(brainstate.environ.dftype()).eps)
    return random.uniform(eps, 1 - eps, (units,))


def _ring(r_min: float, r_max: float, units: int) -> jax.Array:
    """Radii of points that are uniform in the ring."""
    if not 0 <= r_min <= r_max <= 1 or r_min == 1:
        raise ValueError(
            f"r_min and r_max must satisfy 0 <= r_min <= r_max <= 1 and r_min < 1, got {r_min} and "
            f"{r_max}"
        )
    if r_max == 0:
        raise ValueError("r_max must be positive, got 0")
    return jnp.sqrt(r_min**2 + _open_unit(units) * (r_max**2 - r_min**2))


def _phase(max_phase: float, units: int) -> jax.Array:
    if not max_phase > 0:
        raise ValueError(f"max_phase must be positive, got {max_phase}")
    return max_phase * _open_unit(units)
