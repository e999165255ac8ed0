# SPDX-License-Identifier: Apache-2.0
"""Element-wise parameters: ``element_wise``, which is also ``braintrace.element_wise``."""

from __future__ import annotations

from ._ops import element_wise

__version__ = "0.1.0"
__all__ = ["element_wise"]
