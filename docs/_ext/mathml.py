# SPDX-License-Identifier: Apache-2.0
"""Equations as MathML, made by docutils while the site is built."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def converted(node: nodes.Element, as_block: bool) -> str:
    """The MathML of an equation; one that cannot be read is a warning, with its place."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("equation %r: %s", node.astext(), error, location=node)
        return ""


def inline(writer: Any, node: nodes.Element) -> None:
    """An equation in a line of text."""
    writer.body.append(converted(node, as_block=False))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.Element) -> None:
    """An equation in a line of its own, with its number if it has one."""
    number = get_node_equation_number(writer, node) if node.get("number") else ""
    label = f'<span class="eqno">({number})</span>' if number else ""
    equation = converted(node, as_block=True)
    writer.body.append(writer.starttag(node, "div", CLASS="math-block"))
    writer.body.append(f"{label}{equation}</div>")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Add the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
