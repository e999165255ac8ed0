# SPDX-License-Identifier: Apache-2.0
"""The tables of a report, before they become text or HTML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
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

    @classmethod
    def between(cls, first: Any, last: Any) -> Span:
        """The integers from ``first`` to ``last``."""
        span = cls(first)
        span.last = last
        return span

    def __format__(self, spec: str) -> str:
        return f"{int(self)}-{self.last}"


def why(op: OperationFacts, brief: bool = False) -> str:
    """Why an operation has no trace, in a few words or in the compiler's."""
    return WHY[op.kind][brief] if op.kind in WHY else op.reason or "no relation"


def tables(summary: Summary, fold: bool) -> tuple[Table, ...]:
    """Groups, relations, parameters and operations without a trace; empty tables are left out."""
    sources = short_sources(op.source for op in summary.operations)
    united = any(unit for group in summary.groups for unit in group.units)
    groups = [
        (
            Cell(numbers=(group.index,)),
            Cell(paths=group.states),
            Cell(str(group.positions)),
            Cell(str(group.num_state)),
            Cell(group.transition),
            Cell(", ".join(unit or "1" for unit in group.units) if united else ""),
        )
        for group in summary.groups
    ]
    relations = [
        (
            Cell(numbers=(op.relation or 0,)),
            Cell(op.primitive),
            Cell(paths=op.parameters),
            Cell(numbers=op.groups),
            Cell("; ".join(dict.fromkeys(op.alignment))),
            Cell(sources[op.source]),
        )
        for op in summary.relations
    ]
    parameters = [
        (
            Cell(paths=(parameter.path,)),
            Cell(items=parameter.leaves),
            Cell(parameter.gradient),
            Cell(numbers=parameter.relations),
        )
        for parameter in summary.parameters
    ]
    excluded = [
        (Cell(op.primitive), Cell(paths=op.parameters), Cell(why(op)), Cell(sources[op.source]))
        for op in summary.excluded
    ]
    found = (
        ("Hidden groups", "#, states, positions, S, transition, unit", groups),
        ("Relations", "#, operation, parameters, drives, y in positions, source", relations),
        ("Parameters", "parameter, leaves, gradient, relation", parameters),
        ("Operations without a trace", "operation, parameters, why no trace, source", excluded),
    )
    return tuple(_table(title, header, rows, fold) for title, header, rows in found if rows)


def _table(title: str, header: str, rows: Sequence[Row], fold: bool) -> Table:
    """A table without the columns in which nothing stands."""
    names = header.split(", ")
    kept = [k for k in range(len(names)) if any(row[k] != Cell() for row in rows)]
    rows = tuple(tuple(row[k] for k in kept) for row in rows)
    return Table(title, tuple(names[k] for k in kept), fold_rows(rows) if fold else rows)


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
    parts = ([same] if len(same) >= FOLDED else [[r] for r in same] for same in found.values())
    return list(chain.from_iterable(parts))


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
        tuple(map(_merged, zip(*(rows[i] for i in folded[k]), strict=True))) if k in folded else row
        for k, row in enumerate(rows)
        if k not in gone
    )


def _template(row: Row) -> object:
    """What rows that can be folded have in common."""
    return tuple(
        (cell.text, cell.items, len(cell.numbers), *(_renumbered(p, None) for p in cell.paths))
        for cell in row
    )


def _number(path: Path) -> int | None:
    """The number of the layer in a path."""
    return next((part for part in path if isinstance(part, int)), None)


def _renumbered(path: Path, number: object) -> Path:
    """A path with something else in the place of its layer's number."""
    k = next((k for k, part in enumerate(path) if isinstance(part, int)), None)
    return path if k is None else (*path[:k], number, *path[k + 1 :])


def _evenly(rows: Sequence[Row]) -> bool:
    """Whether the layers of rows follow one another and their numbers advance evenly."""
    layers = [{_number(path) for cell in row for path in cell.paths} for row in rows]
    if any(len(found) != 1 or None in found for found in layers):
        return False
    numbers: list[list[Any]] = [
        [*layer, *(n for cell in row for n in cell.numbers)]
        for layer, row in zip(layers, rows, strict=True)
    ]
    steps = [[b - a for a, b in zip(*two, strict=True)] for two in pairwise(numbers)]
    return all(step[0] == 1 and step == steps[0] for step in steps)


def _merged(column: Sequence[Cell]) -> Cell:
    """The cells of rows that are one row now."""
    first, last = column[0], column[-1]
    return replace(
        first,
        numbers=tuple(n for cell in column for n in cell.numbers),
        paths=tuple(
            a if _number(a) is None else _renumbered(a, Span.between(_number(a), _number(b)))
            for a, b in zip(first.paths, last.paths, strict=True)
        ),
    )
