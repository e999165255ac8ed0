# SPDX-License-Identifier: Apache-2.0
"""Learning rules as pure functions of a compiled model."""

from ._d_rtrl import ParamDimRule
from ._pp_prop import IODimRule, decays_of
from ._rule import Block, LearningRule, Traces

__all__ = ["Block", "IODimRule", "LearningRule", "ParamDimRule", "Traces", "decays_of"]
