# SPDX-License-Identifier: Apache-2.0
"""A credit ledger as a table and as a picture, from plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .text import columns

HEAD = ("parameter", "what", "from", "to", "share")
LINE, BAR, LEFT = 18, 160, 8


class Row(NamedTuple):
    """An entry: texts, and a share."""

    parameter: str
    what: str
    origin: str
    target: str
    share: float


def table(rows: Sequence[Row]) -> str:
    """Lines of text; a parameter is named once."""
    lines: list[Sequence[str]] = [HEAD]
    for before, row in zip((None, *rows), rows, strict=False):
        same = before is not None and before.parameter == row.parameter
        name = "" if same else row.parameter
        lines.append((name, row.what, row.origin, row.target, f"{100 * row.share:.1f} %"))
    widths = [max(columns(line[k]) for line in lines) for k in range(len(HEAD))]
    return "\n".join(_padded(line, widths).rstrip() for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(line, widths, strict=True)
    return "  ".join(cell + " " * (width - columns(cell)) for cell, width in pairs)


def picture(rows: Sequence[Row]) -> str:
    """An SVG: a bar for the share of each row, to the right or, below zero, to the left."""
    low = min([0.0, *(row.share for row in rows)])
    high = max([1.0, *(row.share for row in rows)])
    text = table(rows).splitlines()
    start = LEFT + 7 * max(map(columns, text)) + 16
    unit = BAR / (high - low)
    zero, height = start - low * unit, LINE * (len(rows) + 1) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{start + BAR + LEFT:.0f}" '
        f'height="{height}" font-family="monospace" font-size="11.5">'
    ]
    for k, line in enumerate(text):
        y = LINE * (k + 1)
        parts.append(f'<text x="{LEFT}" y="{y}" xml:space="preserve">{escape(line)}</text>')
    for k, row in enumerate(rows, 1):
        x = zero + min(0.0, row.share) * unit
        color = "#2b7a4b" if row.what.startswith("kept") else "#b5542a"
        parts.append(
            f'<rect x="{x:.1f}" y="{LINE * (k + 1) - 10}" width="{abs(row.share) * unit:.1f}" '
            f'height="11" fill="{color}"/>'
        )
    parts.append(
        f'<line x1="{zero:.1f}" y1="{LINE + 4}" x2="{zero:.1f}" y2="{height - 4}" stroke="#888"/>'
    )
    return "\n".join([*parts, "</svg>"])
