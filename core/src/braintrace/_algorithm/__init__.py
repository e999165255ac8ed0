# SPDX-License-Identifier: Apache-2.0
"""Learning rules as pure functions of a compiled model."""

from ._d_rtrl import Block, ParamDimRule, Traces

__all__ = ["Block", "ParamDimRule", "Traces"]
