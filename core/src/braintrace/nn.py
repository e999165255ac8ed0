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

    from braintrace_conv.nn import Conv1d as Conv1d
    from braintrace_conv.nn import Conv2d as Conv2d
    from braintrace_conv.nn import Conv3d as Conv3d
    from braintrace_dense.nn import CFNCell as CFNCell
    from braintrace_dense.nn import GRUCell as GRUCell
    from braintrace_dense.nn import LeakyRateReadout as LeakyRateReadout
    from braintrace_dense.nn import Linear as Linear
    from braintrace_dense.nn import LRUCell as LRUCell
    from braintrace_dense.nn import LSTMCell as LSTMCell
    from braintrace_dense.nn import MGUCell as MGUCell
    from braintrace_dense.nn import MiniGRU as MiniGRU
    from braintrace_dense.nn import MiniLSTM as MiniLSTM
    from braintrace_dense.nn import MinimalRNNCell as MinimalRNNCell
    from braintrace_dense.nn import ScaledWSLinear as ScaledWSLinear
    from braintrace_dense.nn import SignedWLinear as SignedWLinear
    from braintrace_dense.nn import URLSTMCell as URLSTMCell
    from braintrace_dense.nn import ValinaRNNCell as ValinaRNNCell
    from braintrace_lora.nn import LoRA as LoRA
    from braintrace_sparse.nn import SparseLinear as SparseLinear

    def __getattr__(name: str) -> Any: ...  # everything else of brainstate.nn

else:
    from . import _lazy

    def __getattr__(name):
        return _lazy.resolve_in_nn(name)

    def __dir__():
        return _lazy.names_of_nn()
