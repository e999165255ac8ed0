# SPDX-License-Identifier: Apache-2.0
"""What the command ``braintrace`` and its sub-commands say to ``--help``."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

from braintrace.cli import main


def help_of(words: list[str]) -> str:
    """The help of a command, as in a terminal of 80 columns without colours."""
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return text.getvalue().strip()


class Usage(Directive):
    """``usage``, with the name of a sub-command or without."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A block of text."""
        text = help_of(self.arguments)
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Any) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("usage", Usage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
