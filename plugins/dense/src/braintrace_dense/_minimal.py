# SPDX-License-Identifier: Apache-2.0
"""Cells with less recurrence: what is remembered is scaled, not multiplied by a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import sigmoid

from braintrace.plugin_api import Initializer, Size, as_size, seeded

from ._cell import ORTHOGONAL, Cell, GatedCell, cell_arguments, join
from ._layers import ZEROS, Linear


class MinimalRNNCell(Cell):
    """MinimalRNN of Chen (2017).

    ::

        z  = phi(x)                                  the input, in the space of the hidden state
        u  = sigmoid([z, h] W_u + b_u)               update gate
        h' = u * h + (1 - u) * z

    Two relations. The map ``phi`` has two ways to the hidden state; its trace follows the one that
    does not lead through ``W_u``.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weights, [in, out] of ``phi`` and [2 out, out] of the gate: a function of the shape,
        or a value, without a unit.
    b_init
        Initial bias [out] of every gate, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of the hidden state, the same way.
    phi
        Map of the input to [..., out]: a function or a module; ``None`` for a :class:`Linear`.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    phi
        The map of the input.
    W_u
        The :class:`Linear` of the gate, [2 out, out].
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    M. Chen, "MinimalRNN: toward more interpretable and trainable recurrent neural networks",
    arXiv:1711.06788 (2017).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.MinimalRNNCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        phi: Callable[[jax.Array], Any] | None = None,
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, state_init, name)
        if phi is not None and not callable(phi):
            raise TypeError(f"phi must be a function or a module, got {phi!r}")
        with seeded(key):
            self.phi = self._linear(self.in_size, w_init, b_init) if phi is None else phi
            doubled = (*as_size("out_size", self.out_size)[:-1], 2 * self.num_out)
            self.W_u = self._linear(doubled, w_init, b_init)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        z: Any = self.phi(x)
        if jnp.shape(z) != h.shape:
            raise ValueError(
                f"MinimalRNNCell: phi makes the shape {jnp.shape(z)}, expected {h.shape}, that of "
                "the hidden state"
            )
        u = sigmoid(self.W_u(join(z, h)))
        self.h.value = h = u * h + (1 - u) * z
        return h


class MiniGRU(GatedCell):
    """minGRU of Feng et al. (2024), a GRU whose gate and candidate do not see the hidden state.

    ::

        z  = sigmoid(x W_z + b_z)                    update gate
        h' = (1 - z) * h + z * (x W_x + b_x)

    Two relations. The recurrence is position by position, so D-RTRL gives the gradient of
    backpropagation through time.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weight [in, out] of every gate: a function of the shape, or a value, without a
        unit.
    b_init
        Initial bias [out] of every gate, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of the hidden state, the same way.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    W_x, W_z
        The :class:`Linear` of the candidate and of the gate, [in, out].
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?",
    arXiv:2410.01201 (2024).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.MiniGRU(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    of_input = ("W_x", "W_z")
    W_x: Linear
    W_z: Linear

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, w_init, b_init, state_init, name=name, key=key)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        z = sigmoid(self.W_z(x))
        candidate: Any = self.W_x(x)
        self.h.value = h = (1 - z) * h + z * candidate
        return h


class MiniLSTM(GatedCell):
    """minLSTM of Feng et al. (2024), an LSTM whose gates do not see the hidden state.

    ::

        f  = sigmoid(x W_f + b_f)                    forget gate
        i  = sigmoid(x W_i + b_i)                    input gate
        h' = f * h + i * (x W_x + b_x)

    Three relations. The recurrence is position by position, so D-RTRL gives the gradient of
    backpropagation through time. The gates are not divided by their sum, which the paper suggests
    for independence of the sequence length.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weight [in, out] of every gate: a function of the shape, or a value, without a
        unit.
    b_init
        Initial bias [out] of every gate, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of every hidden state, the same way.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    W_x, W_f, W_i
        The :class:`Linear` of the candidate and of the gates, [in, out].
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi, "Were RNNs all we needed?",
    arXiv:2410.01201 (2024).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.MiniLSTM(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    of_input = ("W_x", "W_f", "W_i")
    W_x: Linear
    W_f: Linear
    W_i: Linear

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, w_init, b_init, state_init, name=name, key=key)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        f, i = sigmoid(self.W_f(x)), sigmoid(self.W_i(x))
        candidate: Any = self.W_x(x)
        self.h.value = h = f * h + i * candidate
        return h


class CFNCell(GatedCell):
    """Chaos-free network of Laurent and von Brecht (2016).

    ::

        f  = sigmoid([x, h] Wf + bf)                 forget gate
        i  = sigmoid([x, h] Wi + bi)                 input gate
        h' = f * activation(h) + i * activation(x Wh + bh)

    Without input the hidden state decays to zero, whatever the weights. Three relations.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weights, [in + out, out] of the gates and [in, out] of ``Wh``: a function of the
        shape, or a value, without a unit.
    b_init
        Initial bias [out] of every gate, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of the hidden state, the same way.
    activation
        A function, or the name of one in ``brainstate.nn``.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    Wf, Wi
        The :class:`Linear` of each gate.
    Wh
        The :class:`Linear` of the input, [in, out].
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    T. Laurent, J. von Brecht, "A recurrent neural network without chaos", arXiv:1612.06212 (2016).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.CFNCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    of_both = ("Wf", "Wi")
    of_input = ("Wh",)
    Wf: Linear
    Wi: Linear
    Wh: Linear

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        xh = join(x, h)
        f, i = sigmoid(self.Wf(xh)), sigmoid(self.Wi(xh))
        self.h.value = f * self.activation(h) + i * self.activation(self.Wh(x))
        return self.h.value
