# SPDX-License-Identifier: Apache-2.0
"""Any contraction of an input and a weight: ``einsum`` and ``grouped_matmul``.

They are also ``braintrace.einsum`` and ``braintrace.grouped_matmul``.
"""

from __future__ import annotations

from ._ops import einsum, grouped_matmul

__version__ = "0.1.0"
__all__ = ["einsum", "grouped_matmul"]
