# SPDX-License-Identifier: Apache-2.0
"""Dense products and the layers built on them, for ``braintrace``.

``matmul`` is also ``braintrace.matmul``; the layers of :mod:`braintrace_dense.nn` are also in
``braintrace.nn``.
"""

from __future__ import annotations

from ._ops import matmul

__version__ = "0.1.0"
__all__ = ["matmul"]
