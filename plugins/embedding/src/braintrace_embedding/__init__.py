# SPDX-License-Identifier: Apache-2.0
"""Embeddings: ``embedding``, which is also ``braintrace.embedding``."""

from __future__ import annotations

from ._ops import embedding

__version__ = "0.1.0"
__all__ = ["embedding"]
