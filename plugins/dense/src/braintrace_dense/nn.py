# SPDX-License-Identifier: Apache-2.0
"""Layers and recurrent cells made of dense products.

The cells have these arguments, attributes and errors in common (:class:`LRUCell` says where it
differs).

- ``in_size``, ``out_size``: number of inputs and of hidden units; ``num_in``, ``num_out`` are
  other names for them, those of ``brainstate.nn``.
- ``w_init``, ``b_init``: initial weight [in + out, out] (or [in, out], where only the input is
  mapped) and bias [out] of every gate, as functions of the shape or as values, without a unit;
  ``b_init=None`` for no bias.
- ``state_init``: initial value [out] of every hidden state, the same way.
- ``activation``: a function, or the name of one in ``brainstate.nn``; ``name``: of the module.
- ``key``: seed or JAX key of the initial parameters; ``None`` for the global random state of
  ``brainstate.random``.
- ``init_state(batch_size=None)`` makes the hidden states, [out] or [batch, out] in the dtype of
  ``state_init``; ``reset_state`` sets them back; ``update(x)`` runs one step, ``x`` [in] or
  [batch, in] to the new ``h`` [out] or [batch, out].
- ``ValueError`` for impossible sizes, initial values or activations and for an ``x`` of another
  shape; ``TypeError`` for an ``x`` or an initial value with a unit; ``RuntimeError`` before
  ``init_state``.
"""

from __future__ import annotations

from ._gated import GRUCell, LSTMCell, MGUCell, URLSTMCell, ValinaRNNCell
from ._layers import Linear, ScaledWSLinear, SignedWLinear
from ._lru import LRUCell
from ._minimal import CFNCell, MiniGRU, MiniLSTM, MinimalRNNCell
from ._readout import LeakyRateReadout

__all__ = [
    "CFNCell",
    "GRUCell",
    "LRUCell",
    "LSTMCell",
    "LeakyRateReadout",
    "Linear",
    "MGUCell",
    "MiniGRU",
    "MiniLSTM",
    "MinimalRNNCell",
    "ScaledWSLinear",
    "SignedWLinear",
    "URLSTMCell",
    "ValinaRNNCell",
]
