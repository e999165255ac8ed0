# SPDX-License-Identifier: Apache-2.0
"""Learning rules as pure functions of traces and a block of steps.

A learner (:class:`braintrace.ETraceVjpAlgorithm`) says by ``make_rule`` which :class:`LearningRule`
it is. A rule has ``init``, ``update`` (traces after a block of steps), ``solve`` (gradients of a
block) and ``solve_at_start`` (what a signal at the start of a window finds in the traces); it is
given a :class:`Block`: ``x``, ``f``, ``D`` and the learning signals of several steps.
"""

from .base import Block, LearningRule
from .d_rtrl import ParamDimRule
from .e_prop import EPropRule
from .influence import InfluenceRule
from .pp_prop import IODimRule
from .signals import Resignalled, SignalSource
from .snap import SnApRule
from .uoro import UORORule

__all__ = [
    "Block",
    "EPropRule",
    "IODimRule",
    "InfluenceRule",
    "LearningRule",
    "ParamDimRule",
    "Resignalled",
    "SignalSource",
    "SnApRule",
    "UORORule",
]
