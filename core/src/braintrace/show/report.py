# SPDX-License-Identifier: Apache-2.0
"""The report of a graph: as text for a terminal, and as HTML with the drawing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from html import escape
from itertools import zip_longest

from ..base.diagnostics import CompilationRecord
from ..base.types import show_path
from .draw import draw, themed
from .facts import Summary
from .tables import Cell, Table, alike, fold_rows, tables, totals
from .text import Names, columns, listed, numbers, wrap

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


def to_text(summary: Summary, width: int | None = None, fold: bool = True) -> str:
    """Tables, the warnings, and one line of totals; see ``ETraceGraph.report``."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    found = tables(summary, fold)
    names = Names(path for t in found for row in t.rows for cell in row for path in cell.paths)
    parts = [_as_text(table, width, names) for table in found]
    if summary.warnings:
        warnings = [_warning(same, width, names) for same in alike(summary.warnings)]
        parts.append("\n".join(["Warnings", *warnings]))
    return "\n\n".join([*parts, "\n".join(wrap(totals(summary).split(), width))])


def _as_text(table: Table, width: int, names: Names) -> str:
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


def _warning(same: Sequence[CompilationRecord], width: int, names: Names) -> str:
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


def to_html(summary: Summary) -> str:
    """A fragment for a notebook: the drawing and collapsible tables, in light and dark."""
    found = tables(summary, fold=False)
    if summary.warnings:
        texts = ((r.kind.value, r.message, r.remedy, r.source or "") for r in summary.warnings)
        rows = tuple(tuple(map(Cell, row)) for row in texts)
        found += (Table("Warnings", ("kind", "message", "remedy", "source"), rows),)
    return (
        f'<div class="bt-report"><style>{themed(RULES)}</style>{draw(summary)}'
        f"{''.join(map(_as_html, found))}<p>{escape(totals(summary))}</p></div>"
    )


def page(summary: Summary, title: str) -> str:
    """A whole document around :func:`to_html`."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title></head><body>{to_html(summary)}</body></html>\n"
    )


def _as_html(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        f"<details><summary>{table.title} ({len(table.rows)})</summary>"
        f'<table class="{table.title.split()[0].lower()}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def _cell(cell: Cell) -> str:
    if cell.paths or cell.items:
        return "<br>".join(map(escape, (*map(show_path, cell.paths), *cell.items)))
    return escape(numbers(cell.numbers) if cell.numbers else cell.text)
