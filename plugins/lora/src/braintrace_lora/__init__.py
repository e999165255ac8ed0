# SPDX-License-Identifier: Apache-2.0
"""Low-rank products and the layer built on them, for ``braintrace``.

``lora_matmul`` is also ``braintrace.lora_matmul``; the layer of :mod:`braintrace_lora.nn` is also
in ``braintrace.nn``.
"""

from __future__ import annotations

from ._ops import lora_matmul

__version__ = "0.1.0"
__all__ = ["lora_matmul"]
