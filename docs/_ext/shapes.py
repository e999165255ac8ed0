# SPDX-License-Identifier: Apache-2.0
"""Shapes in docstrings, ``[B, *V, S]``, are text: their asterisks begin no emphasis."""

from __future__ import annotations

import re
from typing import Any

AXES = re.compile(r"(?<=[\[( ])\*(?=[A-Za-z]\w*[],)])")
LITERAL = re.compile(r"(``.*?``|`.*?`)")


def escaped(line: str) -> str:
    """A line of a docstring, with the asterisks of shapes escaped outside of literals."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = LITERAL.split(line)
    parts[::2] = [AXES.sub(r"\\*", text) for text in parts[::2]]
    return "".join(parts)


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Change the lines of a docstring in place."""
    lines[:] = map(escaped, lines)


def setup(app: Any) -> dict[str, Any]:
    """Before sections are read."""
    app.connect("autodoc-process-docstring", escape, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
