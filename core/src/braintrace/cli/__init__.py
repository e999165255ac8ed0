# SPDX-License-Identifier: Apache-2.0
"""The command ``braintrace``: one module per sub-command.

The module is imported when its command is given, so ``--help`` is answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .common import OK, REFUSED, USAGE, Refusal, UsageError, core_version

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
    parser.add_argument("--version", action="version", version=f"braintrace-core {core_version()}")
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
    except (UsageError, Refusal) as error:
        print(f"braintrace: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else REFUSED
    except BrokenPipeError:  # the reader of the output, such as ``head``, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
