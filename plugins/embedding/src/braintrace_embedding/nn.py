# SPDX-License-Identifier: Apache-2.0
"""The layer of embeddings."""

from __future__ import annotations

from ._layers import Embedding

__all__ = ["Embedding"]
