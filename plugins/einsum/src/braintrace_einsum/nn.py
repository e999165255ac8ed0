# SPDX-License-Identifier: Apache-2.0
"""The layer made of grouped products."""

from __future__ import annotations

from ._layers import GroupedLinear

__all__ = ["GroupedLinear"]
