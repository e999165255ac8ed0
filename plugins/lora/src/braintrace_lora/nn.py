# SPDX-License-Identifier: Apache-2.0
"""The layer made of low-rank products."""

from __future__ import annotations

from ._layers import LoRA

__all__ = ["LoRA"]
