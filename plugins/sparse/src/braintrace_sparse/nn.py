# SPDX-License-Identifier: Apache-2.0
"""Layers made of sparse products."""

from __future__ import annotations

from ._layers import SparseLinear

__all__ = ["SparseLinear"]
