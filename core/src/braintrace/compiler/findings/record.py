# SPDX-License-Identifier: Apache-2.0
"""What a finding is: its kind and level, and texts that name the facts they are about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ...base.types import Path, show_path
from ...base.versions import JaxprEqn

Kind = DiagnosticKind
INFO, WARNING = DiagnosticLevel.INFO, DiagnosticLevel.WARNING


@dataclass(frozen=True)
class Finding:
    """A kind of finding; calling it with the facts gives a record.

    ``message`` may name, in braces, what ``context`` and further keywords hold, the ``parameter``,
    the ``states``, the ``primitive`` of the equation that the record is about, and ``at``, which
    is that equation with its place in the user's source.
    """

    kind: DiagnosticKind
    level: DiagnosticLevel
    message: str
    remedy: str

    def __call__(
        self,
        eqn: JaxprEqn | None = None,
        weight_path: Path | None = None,
        hidden_paths: tuple[Path, ...] = (),
        context: Mapping[str, Any] | None = None,
        **told: Any,
    ) -> CompilationRecord:
        facts = {"states": ", ".join(map(show_path, hidden_paths)), **(context or {})}
        about: dict[str, Any] = {}
        if weight_path is not None:
            facts["parameter"] = show_path(weight_path)
        if eqn is not None:
            about = {"primitive": eqn.primitive.name, "source": versions.source_of(eqn)}
            facts |= {"primitive": eqn.primitive.name, "at": described(eqn)}
        return CompilationRecord(
            self.kind,
            self.level,
            self.message.format(**facts | told),
            weight_path=weight_path,
            hidden_paths=hidden_paths,
            context=dict(context or {}),
            remedy=self.remedy,
            **about,
        )


def described(eqn: JaxprEqn) -> str:
    """An equation, with its place in the user's source."""
    return f"{eqn.primitive.name!r} ({versions.source_of(eqn)})"
