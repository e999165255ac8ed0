# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, before they become text or HTML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import sub
from typing import Any

from ..base.diagnostics import CompilationRecord, DiagnosticKind
from ..base.types import Path
from .facts import OperationFacts, Summary
from .text import short_sources

#: So many layers that are alike become one row.
FOLDED = 4

#: Why an operation has no trace: in a few words, and as short as it gets.
WHY = {
    DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL.value: (
        "reaches no hidden state; the gradient of the current step is exact",
        "reaches no hidden state",
    ),
    DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT.value: (
        "reaches hidden states only through another operation; gradient of the current step",
        "only through another operation",
    ),
    DiagnosticKind.RELATION_EXCLUDED_NO_PARAMSTATE.value: ("has no parameter", "no parameter"),
}


@dataclass(frozen=True)
class Cell:
    """Words, items, numbers or paths; ``paths`` and ``numbers`` can be folded."""

    text: str = ""
    items: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    paths: tuple[Path, ...] = ()


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and rows."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]


class Span(int):
    """Consecutive integers as one part of a path; equal to the first of them."""

    last: int

    def __new__(cls, first: int, last: int) -> Span:
        span = super().__new__(cls, first)
        span.last = last
        return span

    def __format__(self, spec: str) -> str:
        return f"{int(self)}-{self.last}"


def why(op: OperationFacts, brief: bool = False) -> str:
    """Why an operation has no trace, in a few words or in the compiler's."""
    return WHY[op.kind][brief] if op.kind in WHY else op.reason or "no relation"


def tables(summary: Summary, fold: bool) -> tuple[Table, ...]:
    """Groups, relations, parameters and operations without a trace.

    Empty tables are left out, and columns in which nothing stands.
    """
    sources = short_sources(op.source for op in summary.operations)
    united = any(unit for group in summary.groups for unit in group.units)
    columns: dict[str, tuple[Sequence[Any], dict[str, Callable[[Any], Cell]]]] = {
        "Hidden groups": (summary.groups, {
            "#": lambda group: Cell(numbers=(group.index,)),
            "states": lambda group: Cell(paths=group.states),
            "positions": lambda group: Cell(str(group.positions)),
            "S": lambda group: Cell(str(group.num_state)),
            "transition": lambda group: Cell(group.transition),
            "unit": lambda group: Cell(", ".join(u or "1" for u in group.units) if united else ""),
        }),
        "Relations": (summary.relations, {
            "#": lambda op: Cell(numbers=(op.relation,)),
            "operation": lambda op: Cell(op.primitive),
            "parameters": lambda op: Cell(paths=op.parameters),
            "drives": lambda op: Cell(numbers=op.groups),
            "y in positions": lambda op: Cell("; ".join(dict.fromkeys(op.alignment))),
            "source": lambda op: Cell(sources[op.source]),
        }),
        "Parameters": (summary.parameters, {
            "parameter": lambda parameter: Cell(paths=(parameter.path,)),
            "leaves": lambda parameter: Cell(items=parameter.leaves),
            "gradient": lambda parameter: Cell(parameter.gradient),
            "relation": lambda parameter: Cell(numbers=parameter.relations),
        }),
        "Operations without a trace": (summary.excluded, {
            "operation": lambda op: Cell(op.primitive),
            "parameters": lambda op: Cell(paths=op.parameters),
            "why no trace": lambda op: Cell(why(op)),
            "source": lambda op: Cell(sources[op.source]),
        }),
    }  # fmt: skip
    found = []
    for title, (facts, cells) in columns.items():
        full = {name: [cell(one) for one in facts] for name, cell in cells.items()}
        kept = {name: column for name, column in full.items() if any(c != Cell() for c in column)}
        rows = tuple(zip(*kept.values(), strict=True))
        if rows:
            found.append(Table(title, tuple(kept), fold_rows(rows) if fold else rows))
    return tuple(found)


def totals(summary: Summary) -> str:
    """One line that counts everything."""
    states = sum(len(group.states) for group in summary.groups)
    gradients = Counter(parameter.gradient for parameter in summary.parameters)
    ways = ", ".join(f"{n} {how}" for how, n in gradients.most_common())
    counts = (
        (len(summary.groups), "hidden group", f" of {states} state{'s' * (states != 1)}"),
        (len(summary.relations), "relation", ""),
        (len(summary.parameters), "parameter", f" ({ways})"),
        (len(summary.excluded), "operation", " without a trace"),
        (len(summary.warnings), "warning", ""),
    )
    return ", ".join(f"{n} {noun}{'s' * (n != 1)}{more}" for n, noun, more in counts)


def alike(records: Sequence[CompilationRecord]) -> list[list[CompilationRecord]]:
    """Records that say the same of different layers, together."""
    found: dict[tuple[str, str], list[CompilationRecord]] = {}
    for record in records:
        words = re.sub(r"\d+", "#", record.message)
        found.setdefault((record.kind.value, words), []).append(record)
    parts = ([same] if len(same) >= FOLDED else [[r] for r in same] for same in found.values())
    return [part for some in parts for part in some]


def fold_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows that differ only by consecutive numbers of layers become one.

    >>> rows = [(Cell(paths=(("layers", i, "h"),)), Cell(numbers=(2 * i,))) for i in range(5)]
    >>> [(row,)] = [fold_rows(rows)]
    >>> f"{row[0].paths[0][1]}", row[1].numbers
    ('0-4', (0, 2, 4, 6, 8))
    """
    runs: list[dict[int, list[int]]] = []
    growing: dict[object, dict[int, list[int]]] = {}
    for k, row in enumerate(rows):
        template, numbers = _apart(row)
        run = growing.get(template, {})
        steps = {tuple(map(sub, b, a)) for a, b in pairwise([*[*run.values()][-2:], numbers])}
        if template is None or len(steps) != 1 or steps.pop()[0] != 1:
            runs.append(run := {})
            growing[template] = run
        run[k] = numbers
    folded: dict[int, Row] = {}
    for run in runs:
        same = [rows[k] for k in run]
        if len(run) >= FOLDED:
            same = [tuple(map(_merged, zip(*same, strict=True)))]
        folded |= zip(run, same, strict=False)
    return tuple(folded[k] for k in sorted(folded))


def _apart(row: Row) -> tuple[object, list[int]]:
    """What rows to fold have in common, ``None`` without one layer; layer and other numbers."""
    layers: set[Any] = {_layer(path) for cell in row for path in cell.paths}
    if len(layers) != 1 or None in layers:
        return None, []
    template = tuple(
        (cell.text, cell.items, len(cell.numbers), *(_numbered(path, None) for path in cell.paths))
        for cell in row
    )
    return template, [*layers, *(n for cell in row for n in cell.numbers)]


def _layer(path: Path) -> Any:
    """The number of the layer in a path."""
    return next((part for part in path if isinstance(part, int)), None)


def _numbered(path: Path, number: object) -> Path:
    """A path with something else in the place of its layer's number."""
    k = path.index(_layer(path))
    return (*path[:k], number, *path[k + 1 :])


def _merged(column: Sequence[Cell]) -> Cell:
    """The cells of rows that are one row now."""
    ends = zip(column[0].paths, column[-1].paths, strict=True)
    paths = tuple(_numbered(a, Span(_layer(a), _layer(b))) for a, b in ends)
    return replace(column[0], numbers=tuple(n for c in column for n in c.numbers), paths=paths)
