# SPDX-License-Identifier: Apache-2.0
"""Convolutional layers, drop-in for those of ``brainstate.nn``."""

from __future__ import annotations

from ._layers import Conv1d, Conv2d, Conv3d

__all__ = ["Conv1d", "Conv2d", "Conv3d"]
