# SPDX-License-Identifier: Apache-2.0
"""NIR graphs as models for ``braintrace``, and back.

:func:`from_nir` makes a model of a graph, :func:`to_nir` a graph of the model.
"""

from __future__ import annotations

from ._export import to_nir
from ._network import Network, from_nir
from ._neurons import Neuron, fast_sigmoid

__version__ = "0.1.0"
__all__ = ["Network", "Neuron", "fast_sigmoid", "from_nir", "to_nir"]
