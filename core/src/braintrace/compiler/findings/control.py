# SPDX-License-Identifier: Apache-2.0
"""Findings about operations and parameters in calls, branches and loops, made on the way."""

from __future__ import annotations

from .record import Kind, info

IN_CALL = info(
    Kind.PRIMITIVE_INSIDE_NESTED_JIT,
    "{primitive} stood inside a nested jit or checkpoint, which is inlined",
    "Nothing to do",
)
REWRITTEN = info(
    Kind.CONTROL_FLOW_REWRITTEN,
    "{primitive}: {how}",
    "ControlFlowPolicy says what is rewritten, and up to which length",
)
INSIDE = info(
    Kind.PRIMITIVE_INSIDE_CONTROL_FLOW,
    "{primitive} stood inside {outer!r} at {place}",
    "Call the operation outside of the branch or loop to have it run, and traced, once",
)
WEIGHT_INSIDE = info(
    Kind.WEIGHT_IN_CONTROL_FLOW,
    "{primitive} reads the parameter {parameter} other than by an ETP operation; that part of its "
    "gradient is that of the current step",
    "Use the parameter through an ETP operation to have it traced",
)
