# SPDX-License-Identifier: Apache-2.0
"""Grouped products and dendrites for braintrace.

``grouped_matmul`` and ``dendrites`` are also ``braintrace.grouped_matmul`` and
``braintrace.dendrites``.
"""

from __future__ import annotations

from ._ops import dendrites, grouped_matmul

__version__ = "0.1.0"
__all__ = ["dendrites", "grouped_matmul"]
