# SPDX-License-Identifier: Apache-2.0
"""Sparse products and the layer built on them, for ``braintrace``.

``sparse_matmul`` is also ``braintrace.sparse_matmul``; the layer of :mod:`braintrace_sparse.nn` is
also in ``braintrace.nn``.
"""

from __future__ import annotations

from ._ops import sparse_matmul

__version__ = "0.1.0"
__all__ = ["sparse_matmul"]
