# SPDX-License-Identifier: Apache-2.0
"""Learning rules as pure functions of a compiled model."""

from ._d_rtrl import DRTRLRule, ParamDimRule
from ._e_prop import EPropRule
from ._lagged import LaggedDRTRLRule, may_lag
from ._pp_prop import IODimRule, decays_of
from ._rule import Block, LearningRule, Traces
from ._signals import Modulated, RandomFeedback, Resignalled, SignalSource, TracelessRule
from ._snap import SnApRule
from ._uoro import UORORule

__all__ = [
    "Block",
    "DRTRLRule",
    "EPropRule",
    "IODimRule",
    "LaggedDRTRLRule",
    "LearningRule",
    "Modulated",
    "ParamDimRule",
    "RandomFeedback",
    "Resignalled",
    "SignalSource",
    "SnApRule",
    "TracelessRule",
    "Traces",
    "UORORule",
    "decays_of",
    "may_lag",
]
