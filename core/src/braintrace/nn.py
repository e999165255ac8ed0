# SPDX-License-Identifier: Apache-2.0
"""Layers and cells trained by eligibility traces.

Layers of the plugins (``Linear``, ``GRUCell``, ...) resolve on first use through the plugin that
provides them; every other name is that of ``brainstate.nn``. Types are in ``nn.pyi``.
"""

from . import lazy as _lazy

# A package to the import statement, so that ``from braintrace.nn import LoRA`` can say which
# distribution provides it.
__path__: list[str] = []


def __getattr__(name):
    return _lazy.resolve_in_nn(name)


def __dir__():
    return _lazy.names_of_nn()
