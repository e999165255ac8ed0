# SPDX-License-Identifier: Apache-2.0
"""How a finding is written: kinds, levels, and names of paths and equations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ...base.types import Path, show_path
from ...base.versions import JaxprEqn

Kind = DiagnosticKind
Records = list[CompilationRecord]


def _record(
    level: DiagnosticLevel, kind: Kind, message: str, eqn: JaxprEqn | None = None, **facts: Any
) -> CompilationRecord:
    """A record about an equation, whose primitive and place it takes unless told otherwise."""
    if eqn is not None:
        facts = {"primitive": eqn.primitive.name, "source": versions.source_of(eqn)} | facts
    return CompilationRecord(kind, level, message, **facts)


info = partial(_record, DiagnosticLevel.INFO)
warning = partial(_record, DiagnosticLevel.WARNING)


def listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(show_path, paths))


def described(offence: JaxprEqn) -> str:
    """The equation that mixes positions, with its place in the user's source."""
    return f"{offence.primitive.name!r} ({versions.source_of(offence)})"
