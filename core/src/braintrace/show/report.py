# SPDX-License-Identifier: Apache-2.0
"""The report of a graph as text for a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import zip_longest

from ..base.diagnostics import CompilationRecord
from .facts import Summary
from .tables import Cell, Table, alike, fold_rows, tables, totals
from .text import Names, columns, listed, numbers, wrap

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
    if summary.warnings:
        warnings = [_warning(same, width, names) for same in alike(summary.warnings)]
        parts.append("\n".join(["Warnings", *warnings]))
    return "\n\n".join([*parts, "\n".join(wrap(totals(summary).split(), width))])


def _table(table: Table, width: int, names: Names) -> str:
    widths = _column_widths(table, width, names)
    lines = [table.title, _line(table.header, widths), _line(["-" * w for w in widths], widths)]
    for row in table.rows:
        cells = [wrap(_words(cell, w, names), w) for cell, w in zip(row, widths, strict=True)]
        lines += [_line(line, widths) for line in zip_longest(*cells, fillvalue="")]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (w - columns(cell)) for cell, w in zip(cells, widths, strict=True))
    return GAP.join(padded).rstrip()


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
        return listed([*paths, *cell.items])
    return (numbers(cell.numbers) if cell.numbers else cell.text).split()


def _warning(same: Sequence[CompilationRecord], width: int, names: Names) -> str:
    """What one or several records say, and which layers the others are about."""
    first = same[0]
    where = f" [{first.source}]" if first.source else ""
    remedy = f". {first.remedy}" if first.remedy else ""
    texts = [f"{first.kind.value}: {first.message}{remedy}{where}"]
    paths = dict.fromkeys(
        r.weight_path or (r.hidden_paths or ((r.source or "?",),))[0] for r in same[1:]
    )
    if paths:
        rows = fold_rows([(Cell(paths=(path,)),) for path in paths])
        about = ", ".join(" ".join(_words(cell, width, names)) for (cell,) in rows)
        texts.append(f"({len(same) - 1} more like this: {about})")
    lines = [line for text in texts for line in wrap(text.split(), max(width - 2, 20))]
    return "- " + "\n  ".join(lines)
