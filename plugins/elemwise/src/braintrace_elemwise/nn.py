# SPDX-License-Identifier: Apache-2.0
"""Attributes of modules that are trained, and normalisation with a trace for scale and bias."""

from __future__ import annotations

from ._attributes import TrainedAttribute
from ._normalizations import (
    BatchNorm0d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    LayerNorm,
    RMSNorm,
)

__all__ = [
    "BatchNorm0d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "TrainedAttribute",
]
