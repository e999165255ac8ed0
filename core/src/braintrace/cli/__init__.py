# SPDX-License-Identifier: Apache-2.0
"""The command ``braintrace``: one module per sub-command, and what these share.

The module is imported when its command is given, so ``--help`` is answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from ..base.errors import behind
from ..names import OFFICIAL

OK, REFUSED, USAGE = 0, 1, 2
LISTED = 30  # names, where none is like the one that was given

# Another distribution may have written over the package: the doctor still has to run.
VERSION: str = getattr(sys.modules["braintrace"], "__version__", "0+unknown")

#: The distributions of the official families.
FAMILIES = {distribution for names in OFFICIAL.values() for distribution in names.values()}

#: Data as the option ``--json`` prints them.
as_json = partial(json.dumps, indent=2, ensure_ascii=False)

#: What the sub-commands do; each is the module of its name, with ``declare`` and ``run``.
COMMANDS = {
    "explain": "compile a model and print, draw or save what the compiler found",
    "plugins": "list the plugins that are installed, with their state",
    "doctor": "examine the installation: every plugin is loaded in a process of its own",
    "new-plugin": "write a working plugin with one operation, its rules and its tests",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; ``arguments`` are by default those of the process.

    The exit status is 0; 1 when a model is refused or the doctor found an error; 2 when the
    command cannot be carried out.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if arguments is None else [*arguments]
    parser = argparse.ArgumentParser(
        prog="braintrace",
        description="Online learning by eligibility traces: tools for models and plugins.",
    )
    parser.add_argument("--version", action="version", version=f"braintrace-core {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text}.")
        if words[:1] == [name]:
            module = import_module(f".{name.replace('-', '_')}", __name__)
            module.declare(command)
    options = parser.parse_args(words)
    try:
        status = int(module.run(options))
        sys.stdout.flush()
        return status
    except Refusal as error:
        print(f"braintrace: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # the reader of the output, such as ``head``, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


class Refusal(Exception):
    """What the user gave cannot be used, such as a model that does not compile."""

    status = REFUSED


class UsageError(Refusal):
    """The command cannot be carried out as it was given."""

    status = USAGE


def hint(name: str, known: Iterable[str], what: str) -> str:
    """``; did you mean 'x'?``, or what there is."""
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if found:
        return f"; did you mean {' or '.join(map(repr, found))}?"
    if not known:
        return f"; there are no {what}"
    more = ", ..." if len(known) > LISTED else ""
    return f"; {what}: {', '.join(known[:LISTED])}{more}"


def told(error: BaseException, file: Path) -> str:
    """An error of the user's code in one line, with the last place beside the file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    folder, where = str(file.resolve().parent), str(file)
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        if path.startswith(folder) and "site-packages" not in path:
            where = f"{path}:{line}"
    cause = behind(error)
    return f"{where}: {type(cause).__name__}: {cause}"
