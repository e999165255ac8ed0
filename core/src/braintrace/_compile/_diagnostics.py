# SPDX-License-Identifier: Apache-2.0
"""What the compiler has to say about a model, as records."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[Any, ...]


class DiagnosticLevel(enum.Enum):
    """How much attention a record deserves; a WARNING is also a ``UserWarning``."""

    INFO = "info"
    WARNING = "warning"


class DiagnosticKind(enum.Enum):
    """What a record is about."""

    RELATION_INCLUDED = "relation_included"
    RELATION_EXCLUDED_NO_PARAMSTATE = "relation_excluded_no_paramstate"
    RELATION_EXCLUDED_NON_TEMPORAL = "relation_excluded_non_temporal"
    RELATION_EXCLUDED_WEIGHT_TO_WEIGHT = "relation_excluded_weight_to_weight"
    RELATION_PARTIAL_PATH = "relation_partial_path"
    TRAINABLE_INVAR_NOT_PARAMSTATE = "trainable_invar_not_paramstate"
    HIDDEN_GROUP_MERGED = "hidden_group_merged"
    TRANSITION_STRUCTURALLY_ZERO = "transition_structurally_zero"
    CROSS_GROUP_DEPENDENCE = "cross_group_dependence"
    CREDIT_THROUGH_OTHER_STATE = "credit_through_other_state"
    PARAMETER_OUTSIDE_OPERATION = "parameter_outside_operation"
    PARAMETER_UNUSED = "parameter_unused"


@dataclass(frozen=True)
class CompilationRecord:
    """One finding of the compiler.

    ``message`` is for people; ``context`` holds the facts it was made from; ``source`` is the
    user's ``file:line (function)``.
    """

    kind: DiagnosticKind
    level: DiagnosticLevel
    message: str
    primitive: str | None = None
    weight_path: Path | None = None
    hidden_paths: tuple[Path, ...] = ()
    source: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f" [{self.source}]" if self.source else ""
        return f"{self.level.value}: {self.kind.value}: {self.message}{where}"


def show_path(path: Path) -> str:
    """A state's path as a person writes it: ``rnn.layers[0].weight``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
