# SPDX-License-Identifier: Apache-2.0
"""Gated cells, and the plain one: each gate is a :class:`Linear` of ``[x, h]``."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
from jax.nn import sigmoid

from braintrace.plugin_api import Initializer, Size

from ._cell import XAVIER, Activation, GatedCell, cell_arguments, join, per_unit
from ._layers import ZEROS, Linear


class ValinaRNNCell(GatedCell):
    """Recurrent layer of Elman (1990): ``h' = activation([x, h] W + b)``.

    One relation. Its recurrence runs through the product alone, so the default (diagonal) scope
    of D-RTRL has nothing to carry from step to step.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    state_init
        Initial value [out] of the hidden state: a function of the shape, or a value, without a
        unit.
    w_init
        Initial weight [in + out, out], the same way.
    b_init
        Initial bias [out], the same way; ``None`` for no bias.
    activation
        A function, or the name of one in ``brainstate.nn``.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

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
    >>> cell = braintrace.nn.ValinaRNNCell(3, 4, activation="tanh", key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    of_both = ("W",)
    W: Linear

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        state_init: Initializer = ZEROS,
        w_init: Initializer = XAVIER,
        b_init: Initializer | None = ZEROS,
        activation: Activation = "relu",
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, w_init, b_init, state_init, activation, name, key=key)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        self.h.value = self.activation(self.W(join(x, h)))
        return self.h.value


class GRUCell(GatedCell):
    """Gated recurrent unit of Cho et al. (2014), reset gate before the product.

    ::

        z  = sigmoid([x, h] Wz + bz)                 update gate
        r  = sigmoid([x, h] Wr + br)                 reset gate
        c  = activation([x, r * h] Wh + bh)          candidate
        h' = (1 - z) * h + z * c

    Three linear maps and two relations: ``Wr`` reaches the hidden state only through ``Wh``, so
    its gradient is the ordinary one of the current step.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weight [in + out, out] of every gate: a function of the shape, or a value, without a
        unit.
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
    >>> cell = braintrace.nn.GRUCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    of_both = ("Wz", "Wr", "Wh")
    Wz: Linear
    Wr: Linear
    Wh: Linear

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        xh = join(x, h)
        z, r = sigmoid(self.Wz(xh)), sigmoid(self.Wr(xh))
        candidate = self.activation(self.Wh(join(x, r * h)))
        self.h.value = (1 - z) * h + z * candidate
        return self.h.value


class MGUCell(GatedCell):
    """Minimal gated unit of Zhou et al. (2016): a GRU whose two gates are one.

    ::

        f  = sigmoid([x, h] Wf + bf)                 forget gate
        c  = activation([x, f * h] Wh + bh)          candidate
        h' = (1 - f) * h + f * c

    Two relations. ``Wf`` has two ways to the hidden state; its trace follows the one that does not
    lead through ``Wh``.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weight [in + out, out] of every gate: a function of the shape, or a value, without a
        unit.
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
    Wf, Wh
        The :class:`Linear` of the gate and of the candidate.
    h
        Hidden state [out] or [batch, out].

    References
    ----------
    G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou, "Minimal gated unit for recurrent neural networks",
    International Journal of Automation and Computing 13 (2016) 226-234, arXiv:1603.09420.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.MGUCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    of_both = ("Wf", "Wh")
    Wf: Linear
    Wh: Linear

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, h = self._read(x)
        f = sigmoid(self.Wf(join(x, h)))
        candidate = self.activation(self.Wh(join(x, f * h)))
        self.h.value = (1 - f) * h + f * candidate
        return self.h.value


class LSTMCell(GatedCell):
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

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weight [in + out, out] of every gate: a function of the shape, or a value, without a
        unit.
    b_init
        Initial bias [out] of every gate, the same way; ``None`` for no bias.
    state_init
        Initial value [out] of every hidden state, the same way.
    activation
        A function, or the name of one in ``brainstate.nn``.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

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
    >>> cell = braintrace.nn.LSTMCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    hidden_names = ("c", "h")
    c: brainstate.HiddenState

    of_both = ("Wi", "Wg", "Wf", "Wo")
    Wi: Linear
    Wg: Linear
    Wf: Linear
    Wo: Linear

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = XAVIER,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        activation: Activation = "tanh",
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, w_init, b_init, state_init, activation, name, key=key)

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, c, h = self._read(x)
        xh = join(x, h)
        i, g = sigmoid(self.Wi(xh)), self.activation(self.Wg(xh))
        f, o = sigmoid(self.Wf(xh) + 1.0), sigmoid(self.Wo(xh))
        self.c.value = f * c + i * g
        self.h.value = o * self.activation(self.c.value)
        return self.h.value


class URLSTMCell(GatedCell):
    """LSTM with refined gates and uniform gate initialisation, UR-LSTM (Gu et al. 2020).

    ::

        f  = sigmoid([x, h] Wf + b)                  forget gate
        r  = sigmoid([x, h] Wr - b)                  refine gate
        u  = activation([x, h] Wu)                   candidate
        o  = sigmoid([x, h] Wo)                      output gate
        g  = 2 r * f + (1 - 2 r) * f ** 2            effective gate
        c' = g * c + (1 - g) * u
        h' = o * activation(c')

    The maps have no bias of their own. ``b`` starts as ``logit(v)`` with ``v`` uniform in
    ``[1 / out, 1 - 1 / out]``, so that the units begin with memories of all lengths. Six relations:
    the four maps, and ``b`` in both of its places.

    Methods and errors are those of every cell; see :mod:`braintrace_dense.nn`.

    Parameters
    ----------
    in_size, out_size
        Number of inputs and of hidden units, also by the names ``num_in`` and ``num_out``.
    w_init
        Initial weight [in + out, out] of every gate: a function of the shape, or a value, without a
        unit.
    state_init
        Initial value [out] of every hidden state, the same way.
    activation
        A function, or the name of one in ``brainstate.nn``.
    name
        Name of the module.
    key
        Seed or JAX key of the initial parameters; ``None`` for ``brainstate.random``.

    Attributes
    ----------
    Wu, Wf, Wr, Wo
        The :class:`Linear` of each gate.
    bias
        ``ParamState`` with ``b`` [out].
    c, h
        Hidden states [out] or [batch, out].

    References
    ----------
    A. Gu, C. Gulcehre, T. Paine, M. Hoffman, R. Pascanu, "Improving the gating mechanism of
    recurrent neural networks", ICML 37 (2020), arXiv:1910.09890.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.URLSTMCell(3, 4, key=0)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 3))).shape
    (2, 4)
    """

    hidden_names = ("c", "h")
    c: brainstate.HiddenState

    of_both = ("Wu", "Wf", "Wr", "Wo")
    Wu: Linear
    Wf: Linear
    Wr: Linear
    Wo: Linear
    bias: brainstate.ParamState

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = XAVIER,
        state_init: Initializer = ZEROS,
        activation: Activation = "tanh",
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, w_init, None, state_init, activation, name, key=key)

    def _draw_more(self) -> None:
        self.bias = brainstate.ParamState(_uniform_gates(self.num_out))

    def update(self, x: Any) -> jax.Array:
        """One step: ``x`` [batch, in] or [in] to the new ``h`` [batch, out] or [out]."""
        x, c, h = self._read(x)
        xh = join(x, h)
        f = sigmoid(self.Wf(xh) + per_unit(self.bias.value, h.shape))
        r = sigmoid(self.Wr(xh) - per_unit(self.bias.value, h.shape))
        u, o = self.activation(self.Wu(xh)), sigmoid(self.Wo(xh))
        g = 2 * r * f + (1 - 2 * r) * f**2
        self.c.value = g * c + (1 - g) * u
        self.h.value = o * self.activation(self.c.value)
        return self.h.value


def _uniform_gates(units: int) -> jax.Array:
    """Biases for which ``sigmoid`` is uniform over the units, away from 0 and 1."""
    lowest = min(1 / units, 0.5)  # a single unit gets the middle
    return jax.scipy.special.logit(brainstate.random.uniform(lowest, 1 - lowest, (units,)))
