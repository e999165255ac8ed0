# SPDX-License-Identifier: Apache-2.0
"""Layers and cells trained by eligibility traces.

Layers of the plugins (``Linear``, ``GRUCell``, ...) resolve on first use through the plugin that
provides them; every other name is that of ``brainstate.nn``. Types are in ``nn.pyi``.
"""

from .lazy import names_of_nn as __dir__  # noqa: F401
from .lazy import resolve_in_nn as __getattr__  # noqa: F401

# A package to the import statement, so that ``from braintrace.nn import LoRA`` can say which
# distribution provides it.
__path__: list[str] = []
