# SPDX-License-Identifier: Apache-2.0
"""The report of a graph as HTML: the drawing, and tables that fold away."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..base.diagnostics import CompilationRecord
from ..base.types import show_path
from .draw import draw, themed
from .facts import Summary
from .tables import Cell, Table, tables, totals
from .text import numbers

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
.bt-report .kind {{ color: {warn}; font-weight: bold; }}
"""


def to_html(summary: Summary) -> str:
    """A fragment for a notebook: the drawing and collapsible tables, in light and dark."""
    parts = [
        f"<style>{themed(RULES)}</style>",
        str(draw(summary)),
        *(_table(table) for table in tables(summary, fold=False)),
        _warnings(summary.warnings),
        f"<p>{escape(totals(summary))}</p>",
    ]
    return f'<div class="bt-report">{"".join(parts)}</div>'


def page(summary: Summary, title: str) -> str:
    """A whole document around :func:`to_html`."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title></head><body>{to_html(summary)}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return _details(
        f"{table.title} ({len(table.rows)})",
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>",
    )


def _cell(cell: Cell) -> str:
    if cell.paths or cell.items:
        return "<br>".join(escape(text) for text in (*map(show_path, cell.paths), *cell.items))
    return escape(numbers(cell.numbers) if cell.numbers else cell.text)


def _warnings(records: Sequence[CompilationRecord]) -> str:
    if not records:
        return ""
    return _details(
        f"Warnings ({len(records)})",
        f"<table><tbody>{''.join(_warning(record) for record in records)}</tbody></table>",
    )


def _warning(record: CompilationRecord) -> str:
    cells = (record.message, record.remedy, record.source or "")
    rest = "".join(f"<td>{escape(text)}</td>" for text in cells)
    return f'<tr><td class="kind">{escape(record.kind.value)}</td>{rest}</tr>'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
