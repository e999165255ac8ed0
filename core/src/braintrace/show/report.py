# SPDX-License-Identifier: Apache-2.0
"""The report of a graph: its tables, as text for a terminal and as HTML."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise, starmap, zip_longest
from operator import attrgetter, sub
from typing import Any

from ..base.diagnostics import CompilationRecord, DiagnosticKind
from ..base.types import Path, how_many, show_path
from .facts import CreditFacts, OperationFacts, Summary
from .text import Names, columns, listed, numbers, short_sources, wrap

#: In light and in dark.
COLOURS = {
    "paper": ("#ffffff", "#14171c"), "frame": ("#f4f5f7", "#1d2127"),
    "border": ("#d5d9e0", "#39404a"), "ink": ("#1c2330", "#e6e9ee"),
    "faint": ("#5a6473", "#a3adbb"), "input": ("#4a5568", "#b4bfce"),
    "relation": ("#0f7b6c", "#4cc3ae"), "relation_fill": ("#e0f3ef", "#12352f"),
    "group": ("#2257c4", "#7aa7ff"), "group_fill": ("#e3ecfd", "#182a4d"),
    "grey": ("#8a93a1", "#8a93a1"), "grey_fill": ("#e9ebee", "#2a2f36"),
    "direct": ("#9a6700", "#e0b341"), "direct_fill": ("#fdf3d8", "#3a2f10"),
    "warn": ("#c0392b", "#ff8a7a"), "warn_fill": ("#fde8e4", "#421d18"),
    "old": ("#8040b0", "#c58cf0"),
}  # fmt: skip

GAP = "  "

RULES = """
.bt-report {{ color: {ink}; background: {paper}; padding: 8px; font: 13px system-ui, sans-serif; }}
.bt-report svg {{ display: block; max-width: 100%; height: auto; }}
.bt-report summary {{ cursor: pointer; font-weight: bold; padding: 4px 0; }}
.bt-report table {{ border-collapse: collapse; margin: 4px 0 10px; }}
.bt-report th, .bt-report td {{
  text-align: left; vertical-align: top; padding: 3px 12px 3px 0; color: {ink};
  background: {paper}; border-bottom: 1px solid {border};
  font: 12px ui-monospace, Menlo, Consolas, monospace;
}}
.bt-report th {{ color: {faint}; }}
.bt-report .warnings td:first-child {{ color: {warn}; font-weight: bold; }}
"""

#: So many layers that are alike become one row.
FOLDED = 4

#: Why an operation has no trace: in a few words, and as short as it gets.
WHY = {
    DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL.value: (
        "reaches no hidden state; gradient of the current step",
        "reaches no hidden state",
    ),
    DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT.value: (
        "reaches hidden states only through another operation; gradient of the current step",
        "only through another operation",
    ),
    DiagnosticKind.RELATION_EXCLUDED_NO_PARAMSTATE.value: ("has no parameter", "no parameter"),
}


#: The two ends of credit over time.
ENDS = attrgetter("below"), attrgetter("above")


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
    """A title, the names of the columns, rows, and what is said under them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


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
    """Groups, relations, parameters, credit between layers, and operations without a trace.

    Empty tables are left out, and columns in which nothing stands.
    """
    sources = short_sources(op.source for op in summary.operations)
    united = any(unit for group in summary.groups for unit in group.units)
    every: dict[str, tuple[Sequence[Any], dict[str, Callable[[Any], Cell]]]] = {
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
        "Credit over time": (_together(summary.credit) if fold else summary.credit, {
            "of": lambda one: Cell(paths=_runs(one.below)),
            "through later": lambda one: Cell(paths=_runs(one.above)),
            "how": lambda one: Cell(one.how),
        }),
        "Operations without a trace": (summary.excluded, {
            "operation": lambda op: Cell(op.primitive),
            "parameters": lambda op: Cell(paths=op.parameters),
            "why no trace": lambda op: Cell(why(op)),
            "source": lambda op: Cell(sources[op.source]),
        }),
    }  # fmt: skip
    found = []
    for title, (facts, cells) in every.items():
        full = {name: [cell(one) for one in facts] for name, cell in cells.items()}
        kept = {name: column for name, column in full.items() if any(c != Cell() for c in column)}
        rows = tuple(zip(*kept.values(), strict=True))
        if rows:
            notes = dict.fromkeys(one.remedy for one in facts if getattr(one, "stops", False))
            folded = fold_rows(rows) if fold else rows
            found.append(Table(title, tuple(kept), folded, " ".join(notes)))
    return tuple(found)


def _together(credit: Sequence[CreditFacts]) -> list[CreditFacts]:
    """Many pairs of layers of which the same is said, as one row."""
    same: dict[tuple[str, str], list[CreditFacts]] = {}
    for one in credit:
        same.setdefault((one.how, one.remedy), []).append(one)
    found: list[CreditFacts] = []
    for of in same.values():
        below, above = (dict.fromkeys(p for one in of for p in ends(one)) for ends in ENDS)
        many = len(of) >= FOLDED
        found += [replace(of[0], below=(*below,), above=(*above,))] if many else of
    return found


def _runs(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Paths, where those of layers that are alike are one."""
    return tuple(row[0].paths[0] for row in fold_rows([(Cell(paths=(p,)),) for p in paths]))


def totals(summary: Summary) -> str:
    """One line that counts everything."""
    states = sum(len(group.states) for group in summary.groups)
    gradients = Counter(parameter.gradient for parameter in summary.parameters)
    ways = ", ".join(f"{n} {how}" for how, n in gradients.most_common())
    counts = (
        (len(summary.groups), "hidden group", f" of {how_many(states, 'state')}"),
        (len(summary.relations), "relation", ""),
        (len(summary.parameters), "parameter", f" ({ways})"),
        (len(summary.excluded), "operation", " without a trace"),
        (len(summary.warnings), "warning", ""),
    )
    return ", ".join(f"{how_many(n, noun)}{more}" for n, noun, more in counts)


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


def to_text(summary: Summary, width: int | None = None, fold: bool = True) -> str:
    """Tables, warnings and notes, and one line of totals; see ``ETraceGraph.report``."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    found = tables(summary, fold)
    names = Names(path for t in found for row in t.rows for cell in row for path in cell.paths)
    parts = [_as_text(table, width, names) for table in found]
    for title, records in _told(summary):
        parts.append("\n".join([title, *(_note(same, width, names) for same in alike(records))]))
    return "\n\n".join([*parts, "\n".join(wrap(totals(summary).split(), width))])


def _told(summary: Summary) -> list[tuple[str, Sequence[CompilationRecord]]]:
    """Records under their titles."""
    every = ("Warnings", summary.warnings), ("Notes", summary.notes)
    return [(title, records) for title, records in every if records]


def _as_text(table: Table, width: int, names: Names) -> str:
    widths = _column_widths(table, width, names)
    lines = [table.title, _line(table.header, widths), _line(["-" * w for w in widths], widths)]
    for row in table.rows:
        cells = [wrap(_words(cell, w, names), w) for cell, w in zip(row, widths, strict=True)]
        lines += [_line(line, widths) for line in zip_longest(*cells, fillvalue="")]
    lines += wrap(table.note.split(), width) if table.note else []
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (w - columns(cell)) for cell, w in zip(cells, widths, strict=True))
    return GAP.join(padded).rstrip()


def _column_widths(table: Table, width: int, names: Names) -> list[int]:
    """The columns' natural widths, the widest made narrower until the table fits."""
    widths, least = [], []
    for title, cells in zip(table.header, zip(*table.rows, strict=True), strict=True):
        natural = max(columns(" ".join(_words(cell, 10**6, names))) for cell in cells)
        narrow = 16 if any(cell.paths for cell in cells) else 11  # paths stay wider than numbers
        least.append(max(columns(title), min(natural, narrow)))
        widths.append(max(columns(title), natural))
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        spare = [w if w > low else 0 for w, low in zip(widths, least, strict=True)]
        if not any(spare):
            break
        widths[spare.index(max(spare))] -= 1
    return widths


def _words(cell: Cell, width: int, names: Names) -> list[str]:
    """What of a cell stays together in one line."""
    if cell.paths or cell.items:
        paths = dict.fromkeys(names.short(path, width - 1) for path in cell.paths)
        return listed([*paths, *cell.items])
    return (numbers(cell.numbers) if cell.numbers else cell.text).split()


def _note(same: Sequence[CompilationRecord], width: int, names: Names) -> str:
    """What one or several records say, and which layers the others are about."""
    texts = [str(same[0]).removeprefix(f"{same[0].level.value}: ")]
    paths = dict.fromkeys(
        r.weight_path or (r.hidden_paths or ((r.source or "?",),))[0] for r in same[1:]
    )
    if paths:
        rows = fold_rows([(Cell(paths=(path,)),) for path in paths])
        about = ", ".join(" ".join(_words(cell, width, names)) for (cell,) in rows)
        texts.append(f"({len(same) - 1} more like this: {about})")
    lines = [line for text in texts for line in wrap(text.split(), max(width - 2, 20))]
    return "- " + "\n  ".join(lines)


def to_html(summary: Summary, drawing: str, more: str = "") -> str:
    """A fragment for a notebook: the drawing and collapsible tables, in light and dark.

    ``more`` is text of a learner: its rule, and what its traces take.
    """
    found = tables(summary, fold=False)
    found += tuple(starmap(_of_records, _told(summary)))
    lines = f"<details><summary>Learner</summary><pre>{escape(more)}</pre></details>" * bool(more)
    return _framed(
        f"{drawing}{''.join(map(_as_html, found))}{lines}<p>{escape(totals(summary))}</p>"
    )


def records_to_html(records: Sequence[CompilationRecord]) -> str:
    """A fragment for a notebook: records as a table."""
    return _framed(_as_html(_of_records("Records", records)).replace("<details>", "<details open>"))


def _of_records(title: str, records: Sequence[CompilationRecord]) -> Table:
    texts = ((r.kind.value, r.level.value, r.message, r.remedy, r.source or "") for r in records)
    rows = tuple(tuple(map(Cell, row)) for row in texts)
    return Table(title, ("kind", "level", "message", "remedy", "source"), rows)


def _framed(content: str) -> str:
    return f'<div class="bt-report"><style>{themed(RULES)}</style>{content}</div>'


def page(summary: Summary, drawing: str, title: str) -> str:
    """A whole document around :func:`to_html`."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title></head><body>{to_html(summary, drawing)}</body></html>\n"
    )


def _as_html(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        f"<details><summary>{table.title} ({len(table.rows)})</summary>"
        f'<table class="{table.title.split()[0].lower()}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>{f'<p>{escape(table.note)}</p>' * bool(table.note)}"
        "</details>"
    )


def _cell(cell: Cell) -> str:
    if cell.paths or cell.items:
        return "<br>".join(map(escape, (*map(show_path, cell.paths), *cell.items)))
    return escape(numbers(cell.numbers) if cell.numbers else cell.text)


def themed(rules: str) -> str:
    """Rules of style with the colours of the light theme, and those of the dark one."""
    light, dark = (
        rules.format(**dict(zip(COLOURS, theme, strict=True)))
        for theme in zip(*COLOURS.values(), strict=True)
    )
    return f"{light}@media (prefers-color-scheme: dark) {{{dark}}}"
