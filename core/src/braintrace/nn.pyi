# SPDX-License-Identifier: Apache-2.0
# Written by `python3 dev.py stubs`.

from typing import Any

from braintrace_conv.nn import Conv1d as Conv1d
from braintrace_conv.nn import Conv2d as Conv2d
from braintrace_conv.nn import Conv3d as Conv3d
from braintrace_dense.nn import CFNCell as CFNCell
from braintrace_dense.nn import GRUCell as GRUCell
from braintrace_dense.nn import LRUCell as LRUCell
from braintrace_dense.nn import LSTMCell as LSTMCell
from braintrace_dense.nn import LeakyRateReadout as LeakyRateReadout
from braintrace_dense.nn import Linear as Linear
from braintrace_dense.nn import MGUCell as MGUCell
from braintrace_dense.nn import MiniGRU as MiniGRU
from braintrace_dense.nn import MiniLSTM as MiniLSTM
from braintrace_dense.nn import MinimalRNNCell as MinimalRNNCell
from braintrace_dense.nn import ScaledWSLinear as ScaledWSLinear
from braintrace_dense.nn import SignedWLinear as SignedWLinear
from braintrace_dense.nn import URLSTMCell as URLSTMCell
from braintrace_dense.nn import ValinaRNNCell as ValinaRNNCell
from braintrace_einsum.nn import GroupedLinear as GroupedLinear
from braintrace_elemwise.nn import BatchNorm0d as BatchNorm0d
from braintrace_elemwise.nn import BatchNorm1d as BatchNorm1d
from braintrace_elemwise.nn import BatchNorm2d as BatchNorm2d
from braintrace_elemwise.nn import BatchNorm3d as BatchNorm3d
from braintrace_elemwise.nn import GroupNorm as GroupNorm
from braintrace_elemwise.nn import LayerNorm as LayerNorm
from braintrace_elemwise.nn import RMSNorm as RMSNorm
from braintrace_elemwise.nn import TrainedAttribute as TrainedAttribute
from braintrace_embedding.nn import Embedding as Embedding
from braintrace_lora.nn import LoRA as LoRA
from braintrace_sparse.nn import SparseLinear as SparseLinear

def __getattr__(name: str) -> Any: ...  # everything else of brainstate.nn
