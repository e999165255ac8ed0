# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, before they become text or HTML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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

    def __format__(self, spec: str) -> str:
        return f"{int(self)}-{self.last}"


def why(op: OperationFacts, brief: bool = False) -> str:
    """Why an operation has no trace, in a few words or in the compiler's."""
    return WHY[op.kind][brief] if op.kind in WHY else op.reason or "no relation"


def tables(summary: Summary, fold: bool) -> tuple[Table, ...]:
    """Groups, relations, parameters and operations without a trace; empty tables are left out."""
    sources = short_sources(op.source for op in summary.operations)
    found = (
        _groups(summary),
        _relations(summary, sources),
        _parameters(summary),
        _excluded(summary, sources),
    )
    kept = [_without_empty_columns(table) for table in found if table.rows]
    return tuple(replace(t, rows=fold_rows(t.rows)) for t in kept) if fold else tuple(kept)


def _without_empty_columns(table: Table) -> Table:
    kept = [k for k in range(len(table.header)) if any(row[k] != Cell() for row in table.rows)]
    rows = tuple(tuple(row[k] for k in kept) for row in table.rows)
    return Table(table.title, tuple(table.header[k] for k in kept), rows)


def _groups(summary: Summary) -> Table:
    united = any(unit for group in summary.groups for unit in group.units)
    rows = tuple(
        (
            Cell(numbers=(group.index,)),
            Cell(paths=group.states),
            Cell(str(group.positions)),
            Cell(str(group.num_state)),
            Cell(group.transition),
            Cell(", ".join(unit or "1" for unit in group.units) if united else ""),
        )
        for group in summary.groups
    )
    return Table("Hidden groups", ("#", "states", "positions", "S", "transition", "unit"), rows)


def _relations(summary: Summary, sources: dict[str, str]) -> Table:
    rows = tuple(
        (
            Cell(numbers=(op.relation or 0,)),
            Cell(op.primitive),
            Cell(paths=op.parameters),
            Cell(numbers=op.groups),
            Cell("; ".join(dict.fromkeys(op.alignment))),
            Cell(sources[op.source]),
        )
        for op in summary.relations
    )
    header = ("#", "operation", "parameters", "drives", "y in positions", "source")
    return Table("Relations", header, rows)


def _parameters(summary: Summary) -> Table:
    rows = tuple(
        (
            Cell(paths=(parameter.path,)),
            Cell(items=parameter.leaves),
            Cell(parameter.gradient),
            Cell(numbers=parameter.relations),
        )
        for parameter in summary.parameters
    )
    return Table("Parameters", ("parameter", "leaves", "gradient", "relation"), rows)


def _excluded(summary: Summary, sources: dict[str, str]) -> Table:
    rows = tuple(
        (Cell(op.primitive), Cell(paths=op.parameters), Cell(why(op)), Cell(sources[op.source]))
        for op in summary.excluded
    )
    header = ("operation", "parameters", "why no trace", "source")
    return Table("Operations without a trace", header, rows)


def totals(summary: Summary) -> str:
    """One line that counts everything."""
    states = sum(len(group.states) for group in summary.groups)
    gradients = Counter(parameter.gradient for parameter in summary.parameters)
    ways = ", ".join(f"{n} {how}" for how, n in sorted(gradients.items(), key=lambda kv: -kv[1]))
    parts = (
        _count(len(summary.groups), "hidden group") + f" of {_count(states, 'state')}",
        _count(len(summary.relations), "relation"),
        _count(len(summary.parameters), "parameter") + f" ({ways})",
        _count(len(summary.excluded), "operation") + " without a trace",
        _count(len(summary.warnings), "warning"),
    )
    return ", ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def alike(records: Sequence[CompilationRecord]) -> list[list[CompilationRecord]]:
    """Records that say the same of different layers, together."""
    found: dict[tuple[str, str], list[CompilationRecord]] = {}
    for record in records:
        words = re.sub(r"\d+", "#", record.message)
        found.setdefault((record.kind.value, words), []).append(record)
    return [
        part
        for same in found.values()
        for part in ([same] if len(same) >= FOLDED else [[record] for record in same])
    ]


# --- rows that are alike ----------------------------------------------------------------------


def fold_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows that differ only by consecutive numbers of layers become one.

    >>> rows = [(Cell(paths=(("layers", i, "h"),)), Cell(numbers=(2 * i,))) for i in range(5)]
    >>> [(row,)] = [fold_rows(rows)]
    >>> f"{row[0].paths[0][1]}", row[1].numbers
    ('0-4', (0, 2, 4, 6, 8))
    """
    runs: list[list[int]] = []
    growing: dict[object, list[int]] = {}
    for k, row in enumerate(rows):
        run = growing.get(template := _template(row))
        if run is None or not _evenly([*(rows[i] for i in run[-2:]), row]):
            runs.append(run := [])
            growing[template] = run
        run.append(k)
    folded = {run[0]: run for run in runs if len(run) >= FOLDED}
    gone = {k for run in folded.values() for k in run[1:]}
    return tuple(
        _merged([rows[i] for i in folded[k]]) if k in folded else row
        for k, row in enumerate(rows)
        if k not in gone
    )


def _template(row: Row) -> object:
    """What rows that can be folded have in common."""
    return tuple(
        (cell.text, cell.items, len(cell.numbers), tuple(_renumbered(p, None) for p in cell.paths))
        for cell in row
    )


def _place(path: Path) -> int | None:
    """Where the number of the layer stands in a path."""
    return next((k for k, part in enumerate(path) if isinstance(part, int)), None)


def _renumbered(path: Path, number: object) -> Path:
    """A path with something else in the place of its layer's number."""
    k = _place(path)
    return path if k is None else (*path[:k], number, *path[k + 1 :])


def _layer(row: Row) -> int | None:
    """The one layer that all paths of a row belong to."""
    paths = [path for cell in row for path in cell.paths]
    found = {None if (k := _place(path)) is None else path[k] for path in paths}
    return found.pop() if len(found) == 1 else None


def _evenly(rows: Sequence[Row]) -> bool:
    """Whether the layers of rows follow one another and their numbers advance evenly."""
    layers = [_layer(row) for row in rows]
    if None in layers or any(b - a != 1 for a, b in pairwise(layers)):  # type: ignore[operator]
        return False
    numbers = [[n for cell in row for n in cell.numbers] for row in rows]
    steps = [[b - a for a, b in zip(*two, strict=True)] for two in pairwise(numbers)]
    return all(step == steps[0] for step in steps)


def _merged(rows: Sequence[Row]) -> Row:
    return tuple(_merged_cell(column) for column in zip(*rows, strict=True))


def _merged_cell(column: Sequence[Cell]) -> Cell:
    first, last = column[0], column[-1]
    return replace(
        first,
        numbers=tuple(n for cell in column for n in cell.numbers),
        paths=tuple(_spanned(a, b) for a, b in zip(first.paths, last.paths, strict=True)),
    )


def _spanned(first: Path, last: Path) -> Path:
    k = _place(first)
    if k is None:
        return first
    span = Span(first[k])
    span.last = last[k]
    return _renumbered(first, span)
