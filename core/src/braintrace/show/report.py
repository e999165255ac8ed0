# SPDX-License-Identifier: Apache-2.0
"""The report of a graph as text for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import zip_longest

from ..base.diagnostics import CompilationRecord
from ..base.types import Path
from .facts import Summary
from .tables import Cell, Table, alike, fold_rows, tables, totals
from .text import Names, columns, numbers, pad, wrap

GAP = "  "


def to_text(summary: Summary, width: int | None = None, fold: bool = True) -> str:
    """Tables of groups, relations, parameters and exclusions, the warnings, and one line of totals.

    Parameters
    ----------
    summary
        What is shown.
    width
        Columns of the text; ``None``: those of the terminal, 100 where there is none.
    fold
        Whether layers that are alike share a row.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    found = tables(summary, fold)
    names = Names.of(path for t in found for row in t.rows for cell in row for path in cell.paths)
    parts = [_table(table, width, names) for table in found]
    parts += [_warnings(summary.warnings, width, names)] if summary.warnings else []
    return "\n\n".join([*parts, "\n".join(wrap(totals(summary).split(), width))])


# --- tables -----------------------------------------------------------------------------------


def _table(table: Table, width: int, names: Names) -> str:
    widths = _column_widths(table, width, names)
    lines = [table.title, _line(table.header, widths), _line(["-" * w for w in widths], widths)]
    for row in table.rows:
        cells = [wrap(_words(cell, w, names), w) for cell, w in zip(row, widths, strict=True)]
        lines += [_line(line, widths) for line in zip_longest(*cells, fillvalue="")]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(pad(cell, w) for cell, w in zip(cells, widths, strict=True)).rstrip()


def _column_widths(table: Table, width: int, names: Names) -> list[int]:
    """The columns' natural widths, the widest made narrower until the table fits."""
    widths, least = [], []
    for k, title in enumerate(table.header):
        cells = [row[k] for row in table.rows]
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
        shown = [*paths, *cell.items]
        return [f"{item}," for item in shown[:-1]] + shown[-1:]
    return (numbers(cell.numbers) if cell.numbers else cell.text).split()


# --- warnings ---------------------------------------------------------------------------------


def _warnings(records: Sequence[CompilationRecord], width: int, names: Names) -> str:
    blocks = [_warning(same, width, names) for same in alike(records)]
    return "\n".join(["Warnings", *blocks])


def _warning(same: Sequence[CompilationRecord], width: int, names: Names) -> str:
    first = same[0]
    where = f" [{first.source}]" if first.source else ""
    remedy = f". {first.remedy}" if first.remedy else ""
    text = f"{first.kind.value}: {first.message}{remedy}{where}"
    lines = wrap(text.split(), max(width - 2, 20))
    if len(same) > 1:
        about = [_words(cell, width, names) for cell in _also(same[1:])]
        more = f"({len(same) - 1} more like this: {', '.join(' '.join(w) for w in about)})"
        lines += wrap(more.split(), max(width - 2, 20))
    return "\n".join(("- " if k == 0 else "  ") + line for k, line in enumerate(lines))


def _also(records: Sequence[CompilationRecord]) -> list[Cell]:
    """What the other warnings are about."""
    paths: list[Path] = [
        r.weight_path or (r.hidden_paths or ((r.source or "?",),))[0] for r in records
    ]
    return [row[0] for row in fold_rows([(Cell(paths=(path,)),) for path in dict.fromkeys(paths)])]
