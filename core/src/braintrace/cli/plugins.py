# SPDX-License-Identifier: Apache-2.0
"""``braintrace plugins``: what is installed, and in which state."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..plugins import metadata
from ..plugins.process import host
from ..plugins.records import PluginRecord
from .common import OK, REFUSED, as_json, official


def declare(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print data instead of a table")
    parser.add_argument("--load", action="store_true", help="load every plugin that may be used")


def run(options: argparse.Namespace) -> int:
    """List the plugins; with ``--load`` the status is 1 when one of them does not load."""
    metadata.use_backport()
    records = host().load_all(strict=False) if options.load else host().records()
    absent = sorted(official() - {record.distribution for record in records})
    if options.json:
        data = [
            {**vars(r), "exception": r.exception and f"{type(r.exception).__name__}: {r.exception}"}
            for r in records
        ]
        print(as_json({"plugins": data, "not_installed": absent}))
    else:
        _print_table(records)
        if absent:
            print(f"not installed: {', '.join(absent)}")
    broken = {"failed", "incompatible", "conflict"}
    return REFUSED if options.load and any(str(r.state) in broken for r in records) else OK


def _print_table(records: Sequence[PluginRecord]) -> None:
    rows = [("family", "distribution", "version", "state", "names")]
    for r in records:
        names = ", ".join(name.removeprefix("braintrace.") for name in r.exports)
        shown = names if len(names) <= 60 else f"{names[:57]}..."
        rows.append((r.family, r.distribution, r.version, str(r.state), shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if records else ():
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    if not records:
        print("no plugin is installed")
    for record in records:
        if record.reason:
            print(f"{record.distribution!r} {record.reason}")
        for problem in record.problems:
            print(f"{record.distribution!r}: {problem}")
