# SPDX-License-Identifier: Apache-2.0
"""What a finding is: its kind and level, and texts that name the facts they are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ...base.types import Path, show_path
from ...base.versions import JaxprEqn

Kind = DiagnosticKind


@dataclass(frozen=True)
class Finding:
    """A kind of finding; calling it with the facts gives a record.

    ``message`` may name, in braces, what ``context`` and further keywords hold, the ``parameter``,
    the ``states``, the ``primitive`` of the equation that the record is about, and ``at``, which
    is that equation with its place in the user's source.
    """

    level: DiagnosticLevel
    kind: DiagnosticKind
    message: str
    remedy: str

    def __call__(
        self,
        eqn: JaxprEqn | None = None,
        weight_path: Path | None = None,
        hidden_paths: tuple[Path, ...] = (),
        context: Mapping[str, Any] = MappingProxyType({}),
        **told: Any,
    ) -> CompilationRecord:
        name, source = (eqn.primitive.name, versions.source_of(eqn)) if eqn else (None, None)
        facts = {"primitive": name, "at": f"{name!r} ({source})"}
        facts |= {"parameter": show_path(weight_path or ())}
        facts |= {"states": ", ".join(map(show_path, hidden_paths))}
        message = self.message.format(**context, **told, **facts)
        about = (name, weight_path, hidden_paths, dict(context), source)
        return CompilationRecord(self.kind, self.level, message, *about, self.remedy)


def warns(record: CompilationRecord) -> bool:
    """Whether a record is of level WARNING, and not about a gradient that is exact."""
    is_readout = record.kind is Kind.RELATION_EXCLUDED_NON_TEMPORAL and not record.hidden_paths
    is_exact = is_readout or record.kind is Kind.TAIL_NOT_POSITION_WISE
    return record.level is DiagnosticLevel.WARNING and not is_exact


info = partial(Finding, DiagnosticLevel.INFO)
warning = partial(Finding, DiagnosticLevel.WARNING)


def described(eqn: JaxprEqn) -> str:
    """An equation, with its place in the user's source."""
    return f"{eqn.primitive.name!r} ({versions.source_of(eqn)})"


# What is found on the way, about operations and parameters in calls, branches and loops.

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
ROLLED = info(
    Kind.SCAN_DESCENT_APPLIED,
    "{primitive}: its {length} iterations stay a loop; operations taken out of it, for all "
    "iterations at once and with one trace for each: {count}",
    "ControlFlowPolicy(scan_unroll_limit=...) has a longer loop written out",
)
OPAQUE = info(
    Kind.CONTROL_FLOW_OPAQUE_FWD,
    "{primitive}: a derivative passes the loop; its iterations run once more, backward, for it",
    "Nothing to do; a loop of fixed length (jax.lax.scan) saves running them again",
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
WEIGHT_IN_WHILE = info(
    Kind.WEIGHT_IN_WHILE,
    "a while reads the parameter {parameter}; that part of its gradient is that of the current "
    "step",
    "Use the parameter through an ETP operation in front of the loop to have it traced",
)
