# SPDX-License-Identifier: Apache-2.0
"""Layers and recurrent cells made of dense products.

The cells have these arguments, attributes and errors in common.

- ``in_size``, ``out_size``: number of inputs and of hidden units.
- ``w_init``, ``b_init``: initial weight [in + out, out] and bias [out] of every gate, as functions
  of the shape or as values; ``b_init=None`` for no bias.
- ``state_init``: initial value [out] of every hidden state, the same way.
- ``activation``: a function, or the name of one in ``brainstate.nn``; ``name``: of the module.
- ``init_state(batch_size=None)`` makes the hidden states, [out] or [batch, out] in the dtype of
  ``state_init``; ``reset_state`` sets them back; ``update(x)`` runs one step, ``x`` [in] or
  [batch, in] to the new ``h`` [out] or [batch, out].
- ``ValueError`` for impossible sizes, initial values or activations and for an ``x`` of another
  shape; ``TypeError`` for an ``x`` with a unit; ``RuntimeError`` before ``init_state``.
"""

from __future__ import annotations

from ._cells import GRUCell, LSTMCell, ValinaRNNCell
from ._layers import Linear

__all__ = ["GRUCell", "LSTMCell", "Linear", "ValinaRNNCell"]
