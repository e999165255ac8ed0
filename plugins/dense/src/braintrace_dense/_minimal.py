# SPDX-License-Identifier: Apache-2.0
"""Cells with less recurrence: what is remembered is scaled, not multiplied by a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

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


class _CandidateOfInput(GatedCell):
    """A cell whose candidate ``x W_x + b_x`` does not see the hidden state; its gates may."""

    gates: ClassVar[tuple[str, ...]]
    W_x: Linear

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
        recurrent_gates: bool = True,
        key: Any = None,
    ) -> None:
        self.recurrent_gates = recurrent_gates
        self.of_both = self.gates if recurrent_gates else ()
        self.of_input = ("W_x",) if recurrent_gates else ("W_x", *self.gates)
        super().__init__(in_size, out_size, w_init, b_init, state_init, name=name, key=key)

    def _terms(self, x: jax.Array, h: jax.Array) -> tuple[jax.Array, ...]:
        """The candidate, and the gates."""
        seen = join(x, h) if self.recurrent_gates else x
        candidate: Any = self.W_x(x)
        return candidate, *(sigmoid(getattr(self, gate)(seen)) for gate in self.gates)


class MiniGRU(_CandidateOfInput):
    """GRU without a reset gate, whose candidate does not see the hidden state.

    ::

        z  = sigmoid([x, h] W_z + b_z)               update gate
        h' = (1 - z) * h + z * (x W_x + b_x)

    With ``recurrent_gates=False`` it is the minGRU of Feng et al. (2024), whose gate does not see
    the hidden state either, ``z = sigmoid(x W_z + b_z)``. Its recurrence is position by position,
    so D-RTRL gives the gradient of backpropagation through time. Two relations.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weights, [in, out] of the candidate and [in + out, out] of the gate: a function of
        the shape, or a value, without a unit.
    b_init
        Initial bias [out] of each, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of the hidden state, the same way.
    name
        Name of the module.
    recurrent_gates
        Whether the gate sees the hidden state. ``False`` is the form of the paper, whose gate has a
        weight [in, out].
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    W_x, W_z
        The :class:`Linear` of the candidate and of the gate.
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
    >>> braintrace.nn.MiniGRU(3, 4, recurrent_gates=False).W_z.weight.value["weight"].shape
    (3, 4)
    """

    gates = ("W_z",)
    W_z: Linear

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        candidate, z = self._terms(x, h)
        self.h.value = h = (1 - z) * h + z * candidate
        return h


class MiniLSTM(_CandidateOfInput):
    """LSTM without an output gate, whose candidate does not see the hidden state.

    ::

        f  = sigmoid([x, h] W_f + b_f)               forget gate
        i  = sigmoid([x, h] W_i + b_i)               input gate
        h' = f * h + i * (x W_x + b_x)

    With ``recurrent_gates=False`` it is the minLSTM of Feng et al. (2024), whose gates do not see
    the hidden state either: ``sigmoid(x W + b)``. Its recurrence is position by position, so D-RTRL
    gives the gradient of backpropagation through time. In neither form are the gates divided by
    their sum, which the paper suggests for independence of the sequence length. Three relations.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weights, [in, out] of the candidate and [in + out, out] of the gates: a function of
        the shape, or a value, without a unit.
    b_init
        Initial bias [out] of each, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of the hidden state, the same way.
    name
        Name of the module.
    recurrent_gates
        Whether the gates see the hidden state. ``False`` is the form of the paper, whose gates have
        weights [in, out].
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    W_x, W_f, W_i
        The :class:`Linear` of the candidate and of the gates.
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
    >>> braintrace.nn.MiniLSTM(3, 4, recurrent_gates=False).W_f.weight.value["weight"].shape
    (3, 4)
    """

    gates = ("W_f", "W_i")
    W_f: Linear
    W_i: Linear

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        candidate, f, i = self._terms(x, h)
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
