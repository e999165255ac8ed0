# SPDX-License-Identifier: Apache-2.0
"""Layers and cells trained by eligibility traces.

Layers of the plugins (``Linear``, ``GRUCell``, ...) resolve on first use through the plugin that
provides them; every other name is that of ``brainstate.nn``.
"""

# A package to the import statement, so that ``from braintrace.nn import LoRA`` can say which
# distribution provides it.
__path__: list[str] = []

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from braintrace_dense.nn import GRUCell as GRUCell
    from braintrace_dense.nn import Linear as Linear
    from braintrace_dense.nn import LSTMCell as LSTMCell
    from braintrace_dense.nn import ValinaRNNCell as ValinaRNNCell

    def __getattr__(name: str) -> Any: ...  # everything else of brainstate.nn

else:
    from . import _lazy

    def __getattr__(name):
        return _lazy.resolve_in_nn(name)

    def __dir__():
        return _lazy.names_of_nn()
