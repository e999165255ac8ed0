# SPDX-License-Identifier: Apache-2.0
"""A compiled graph to look at: one summary, shown as text, as a drawing, as HTML or as data."""

from ._draw import Drawing, draw
from ._html import page, to_html
from ._report import to_text
from ._summary import record_data, summarize, to_data

__all__ = ["Drawing", "draw", "page", "record_data", "summarize", "to_data", "to_html", "to_text"]
