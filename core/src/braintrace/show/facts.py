# SPDX-License-Identifier: Apache-2.0
"""What is shown of a compiled graph, as plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..base.diagnostics import CompilationRecord
from ..base.types import Path, show_path

Node = tuple[str, int]
"""A place that values come from or go to.

``("input", 0)``, ``("output", 0)``, ``("op", equation)``, ``("group", index)`` and, as sources,
its values ``("new", index)`` and ``("old", index)``; ``("plain", k)`` for parameter ``k`` used
without an operation, ``("state", k)`` for another state that carries hidden values.
"""


@dataclass(frozen=True)
class GroupFacts:
    """A hidden group: members, positions ``[*V]``, number ``S`` of states, and its transition.

    ``eqn`` is the equation that completes its new values.
    """

    index: int
    eqn: int
    states: tuple[Path, ...]
    units: tuple[str, ...]
    positions: tuple[int, ...]
    num_state: int
    transition: str


@dataclass(frozen=True)
class OperationFacts:
    """An ETP operation: a relation, or one that is excluded (``relation`` is ``None``)."""

    eqn: int
    relation: int | None
    primitive: str
    parameters: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...]
    alignment: tuple[str, ...]
    source: str
    kind: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ParameterFacts:
    """A parameter: its leaves, and how its gradient arises."""

    path: Path
    leaves: tuple[str, ...]
    gradient: str
    relations: tuple[int, ...]


@dataclass(frozen=True)
class CreditFacts:
    """What becomes of the credit of states ``below`` through later values of those ``above``."""

    below: tuple[Path, ...]
    above: tuple[Path, ...]
    how: str
    remedy: str

    @property
    def stops(self) -> bool:
        return not self.how.startswith("passes")


@dataclass(frozen=True)
class Flow:
    """Values of ``source`` enter ``target`` without passing a further node.

    ``credit`` says whether a derivative can flow back.
    """

    source: Node
    target: Node
    credit: bool


@dataclass(frozen=True)
class Summary:
    """Everything that is shown of a graph; ``paths`` are those of plain parameters and states.

    ``notes`` are about gradients that are exact.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    groups: tuple[GroupFacts, ...]
    operations: tuple[OperationFacts, ...]
    parameters: tuple[ParameterFacts, ...]
    paths: Mapping[Node, Path]
    flows: tuple[Flow, ...]
    warnings: tuple[CompilationRecord, ...]
    credit: tuple[CreditFacts, ...] = ()
    notes: tuple[CompilationRecord, ...] = ()

    @property
    def relations(self) -> tuple[OperationFacts, ...]:
        """The operations with a trace."""
        return tuple(op for op in self.operations if op.relation is not None)

    @property
    def excluded(self) -> tuple[OperationFacts, ...]:
        """The operations without one."""
        return tuple(op for op in self.operations if op.relation is None)


def to_data(summary: Summary) -> dict[str, Any]:
    """The summary as JSON-ready data; paths are written as people write them."""
    parts = ("groups", "relations", "excluded", "parameters", "credit", "flows")
    return {
        "inputs": list(summary.inputs),
        "outputs": list(summary.outputs),
        **{part: [_plain(facts) for facts in getattr(summary, part)] for part in parts},
        "warnings": [record_data(record) for record in summary.warnings],
        "notes": [record_data(record) for record in summary.notes],
    }


def record_data(record: CompilationRecord) -> dict[str, Any]:
    """A diagnostic as JSON-ready data."""
    return {
        "kind": record.kind.value,
        "level": record.level.value,
        "message": record.message,
        "primitive": record.primitive,
        "weight": None if record.weight_path is None else show_path(record.weight_path),
        "hidden": [show_path(path) for path in record.hidden_paths],
        "source": record.source,
        "remedy": record.remedy,
    }


def _plain(facts: Any) -> dict[str, Any]:
    data = dict(vars(facts))
    for name in {"states", "parameters", "below", "above"} & data.keys():
        data[name] = [show_path(path) for path in data[name]]
    return data | ({"path": show_path(data["path"])} if "path" in data else {})
