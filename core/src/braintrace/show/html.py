# SPDX-License-Identifier: Apache-2.0
"""The report of a graph as HTML: the drawing, and tables that fold away."""

from __future__ import annotations

from html import escape

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
.bt-report .warnings td:first-child {{ color: {warn}; font-weight: bold; }}
"""


def to_html(summary: Summary) -> str:
    """A fragment for a notebook: the drawing and collapsible tables, in light and dark."""
    warnings = Table(
        "Warnings",
        ("kind", "message", "remedy", "source"),
        tuple(
            tuple(map(Cell, (r.kind.value, r.message, r.remedy, r.source or "")))
            for r in summary.warnings
        ),
    )
    parts = [
        f"<style>{themed(RULES)}</style>",
        str(draw(summary)),
        *map(_table, (*tables(summary, fold=False), *([warnings] if warnings.rows else []))),
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
    return (
        f"<details><summary>{table.title} ({len(table.rows)})</summary>"
        f'<table class="{table.title.split()[0].lower()}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def _cell(cell: Cell) -> str:
    if cell.paths or cell.items:
        return "<br>".join(map(escape, (*map(show_path, cell.paths), *cell.items)))
    return escape(numbers(cell.numbers) if cell.numbers else cell.text)
