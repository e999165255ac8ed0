# SPDX-License-Identifier: Apache-2.0
"""The command ``braintrace``: one module per sub-command, in a table.

Nothing but the interpreter's own modules is imported before a sub-command needs it, so ``--help``
and mistakes in the arguments are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from . import doctor, explain, new_plugin, plugins
from .common import OK, REFUSED, USAGE, Command, Refusal, UsageError, core_version

COMMANDS: Mapping[str, Command] = {
    "explain": explain.COMMAND,
    "plugins": plugins.COMMAND,
    "doctor": doctor.COMMAND,
    "new-plugin": new_plugin.COMMAND,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Parameters
    ----------
    arguments
        The words of the command line; ``None``: those of the process.

    Returns
    -------
    int
        The exit status: 0; 1 when a model is refused or the doctor found an error; 2 when the
        command cannot be carried out.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        status = COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _complain(error, USAGE)
    except Refusal as error:
        return _complain(error, REFUSED)
    except BrokenPipeError:  # the reader of the output, such as ``head``, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _complain(error: Exception, status: int) -> int:
    print(f"braintrace: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="braintrace",
        description="Online learning by eligibility traces: tools for models and plugins.",
    )
    parser.add_argument("--version", action="version", version=f"braintrace-core {core_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.arguments(
            commands.add_parser(name, help=command.help, description=command.help + ".")
        )
    return parser
