# SPDX-License-Identifier: Apache-2.0
"""``braintrace plugins``: what is installed, and in which state."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from ..plugins import metadata
from ..plugins.process import host
from ..plugins.records import PluginRecord
from . import FAMILIES, OK, REFUSED, as_json


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print data instead of a table")
    parser.add_argument("--load", action="store_true", help="load every plugin that may be used")


def run(options: argparse.Namespace) -> int:
    """List the plugins; with ``--load`` the status is 1 when one of them does not load."""
    metadata.use_backport()
    records = host().load_all(strict=False) if options.load else host().records()
    absent = sorted(FAMILIES - {record.distribution for record in records})
    if options.json:
        data = [
            {**vars(r), "exception": r.exception and f"{type(r.exception).__name__}: {r.exception}"}
            for r in records
        ]
        print(as_json({"plugins": data, "not_installed": absent}))
    else:
        print("\n".join(_table(records)) if records else "no plugin is installed")
        if absent:
            print(f"not installed: {', '.join(absent)}")
    broken = {"failed", "incompatible", "conflict"}
    return REFUSED if options.load and any(str(r.state) in broken for r in records) else OK


def _table(records: Sequence[PluginRecord]) -> Iterator[str]:
    rows = [("family", "distribution", "version", "state", "names")]
    for r in records:
        names = ", ".join(name.removeprefix("braintrace.") for name in r.exports)
        shown = names if len(names) <= 60 else f"{names[:57]}..."
        rows.append((r.family, r.distribution, r.version, str(r.state), shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    for r in records:
        yield from [f"{r.distribution!r} {r.reason}"] if r.reason else []
        yield from (f"{r.distribution!r}: {problem}" for problem in r.problems)
