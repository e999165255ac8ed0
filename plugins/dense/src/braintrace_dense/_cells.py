# SPDX-License-Identifier: Apache-2.0
"""Recurrent cells: each gate is a :class:`Linear` of the concatenated input and hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp
import saiunit
from brainstate.nn import init, sigmoid

from braintrace.plugin_api import as_size, initial_value

from ._layers import ZEROS, Initializer, Linear, Size

Activation = str | Callable[[jax.Array], jax.Array]

ORTHOGONAL: Initializer = init.Orthogonal()
XAVIER: Initializer = init.XavierNormal()


class _Cell(brainstate.nn.RNNCell):
    """Sizes, hidden states and activation of a cell; the equations belong to its subclasses."""

    hidden_names: ClassVar[tuple[str, ...]] = ("h",)
    h: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        state_init: Initializer,
        activation: Activation,
        name: str | None,
    ) -> None:
        super().__init__(name=name)  # type: ignore[call-arg]
        inputs, hidden = as_size("in_size", in_size), as_size("out_size", out_size)
        self.in_size, self.out_size = inputs, hidden
        self.num_in, self.num_out = inputs[-1], hidden[-1]
        self._joined_size = (*inputs[:-1], inputs[-1] + hidden[-1])
        self.state_init = state_init
        self.activation = _as_function(activation)

    def _gate(self, w_init: Initializer, b_init: Initializer | None) -> Linear:
        """A linear map from ``[x, h]`` to the hidden units."""
        return Linear(self._joined_size, self.out_size, w_init=w_init, b_init=b_init)

    def _initial_state(self, batch_size: int | None) -> Any:
        batch = () if batch_size is None else as_size("batch_size", batch_size)
        shape = (*batch, *as_size("out_size", self.out_size))
        return initial_value("state_init", self.state_init, shape)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Create the hidden states, [out] or [batch_size, out]."""
        for name in self.hidden_names:
            setattr(self, name, brainstate.HiddenState(self._initial_state(batch_size)))

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Set the hidden states back to their initial value, [out] or [batch_size, out]."""
        for name in self.hidden_names:
            self._hidden(name).value = self._initial_state(batch_size)

    def _hidden(self, name: str) -> brainstate.HiddenState:
        if not hasattr(self, name):
            raise RuntimeError(
                f"{type(self).__name__} has no state {name!r} yet: call "
                "init_state(batch_size=...) on it, or brainstate.nn.init_all_states on the model"
            )
        return getattr(self, name)

    def _read(self, x: Any) -> tuple[jax.Array, jax.Array]:
        """The input and the old ``h``, after checking that they can be joined."""
        h: Any = self._hidden("h").value
        if not saiunit.get_unit(x).is_unitless:
            raise TypeError(
                f"{type(self).__name__}: x has the unit {saiunit.get_unit(x)}; it is joined with "
                "the unitless hidden state, so divide it by a unit first"
            )
        x, expected = jnp.asarray(x), (*h.shape[:-1], self.num_in)
        if x.shape != expected:
            raise ValueError(
                f"{type(self).__name__}: x has shape {x.shape}, expected {expected} for the hidden "
                f"state of shape {h.shape}; init_state(batch_size=...) sets the batch"
            )
        return x, h


def _as_function(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    fn = getattr(brainstate.nn, activation, None) if isinstance(activation, str) else activation
    if not callable(fn):
        raise ValueError(
            f"activation must be a function or the name of one in brainstate.nn, got {activation!r}"
        )
    return fn


def _join(x: jax.Array, h: jax.Array) -> jax.Array:
    return jnp.concatenate([x, h], axis=-1)


class ValinaRNNCell(_Cell):
    """Recurrent layer of Elman (1990): ``h' = activation([x, h] W + b)``.

    One relation. Its recurrence runs through the product alone, so the default (diagonal) scope
    of D-RTRL has nothing to carry from step to step.

    Arguments, methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Attributes
    ----------
    W
        The :class:`Linear` from ``[x, h]``.
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990) 179-211.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.ValinaRNNCell(3, 4, activation="tanh")
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        state_init: Initializer = ZEROS,
        w_init: Initializer = XAVIER,
        b_init: Initializer | None = ZEROS,
        activation: Activation = "relu",
        name: str | None = None,
    ) -> None:
        super().__init__(in_size, out_size, state_init, activation, name)
        self.W = self._gate(w_init, b_init)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        self.h.value = self.activation(self.W(_join(x, h)))
        return self.h.value


class GRUCell(_Cell):
    """Gated recurrent unit of Cho et al. (2014), reset gate before the product.

    ::

        z  = sigmoid([x, h] Wz + bz)                 update gate
        r  = sigmoid([x, h] Wr + br)                 reset gate
        c  = activation([x, r * h] Wh + bh)          candidate
        h' = (1 - z) * h + z * c

    Three linear maps and two relations: ``Wr`` reaches the hidden state only through ``Wh``, so
    its gradient is the ordinary one of the current step.

    Arguments, methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Attributes
    ----------
    Wz, Wr, Wh
        The :class:`Linear` of each gate.
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
    machine translation", arXiv:1406.1078 (2014).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        activation: Activation = "tanh",
        name: str | None = None,
    ) -> None:
        super().__init__(in_size, out_size, state_init, activation, name)
        self.Wz = self._gate(w_init, b_init)
        self.Wr = self._gate(w_init, b_init)
        self.Wh = self._gate(w_init, b_init)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        xh = _join(x, h)
        z, r = sigmoid(self.Wz(xh)), sigmoid(self.Wr(xh))
        candidate = self.activation(self.Wh(_join(x, r * h)))
        self.h.value = (1 - z) * h + z * candidate
        return self.h.value


class LSTMCell(_Cell):
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    ::

        i  = sigmoid([x, h] Wi + bi)                 input gate
        g  = activation([x, h] Wg + bg)              candidate
        f  = sigmoid([x, h] Wf + bf + 1)             forget gate
        o  = sigmoid([x, h] Wo + bo)                 output gate
        c' = f * c + i * g
        h' = o * activation(c')

    The constant 1 in the forget gate (Jozefowicz et al. 2015) is no parameter, as in
    ``brainstate.nn.LSTMCell``. Four relations, all to the group of ``c`` and ``h``.

    Arguments, methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Attributes
    ----------
    Wi, Wg, Wf, Wo
        The :class:`Linear` of each gate.
    c, h
        Hidden states [out] or [batch, out].

    References
    ----------
    S. Hochreiter, J. Schmidhuber, Neural Computation 9 (1997) 1735-1780.
    F. A. Gers, J. Schmidhuber, F. Cummins, Neural Computation 12 (2000) 2451-2471.
    R. Jozefowicz, W. Zaremba, I. Sutskever, ICML 37 (2015) 2342-2350.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.LSTMCell(3, 4)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    hidden_names = ("c", "h")
    c: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = XAVIER,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        activation: Activation = "tanh",
        name: str | None = None,
    ) -> None:
        super().__init__(in_size, out_size, state_init, activation, name)
        self.Wi = self._gate(w_init, b_init)
        self.Wg = self._gate(w_init, b_init)
        self.Wf = self._gate(w_init, b_init)
        self.Wo = self._gate(w_init, b_init)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        xh, c = _join(x, h), self.c.value
        i, g = sigmoid(self.Wi(xh)), self.activation(self.Wg(xh))
        f, o = sigmoid(self.Wf(xh) + 1.0), sigmoid(self.Wo(xh))
        self.c.value = f * c + i * g
        self.h.value = o * self.activation(self.c.value)
        return self.h.value
