# SPDX-License-Identifier: Apache-2.0
"""``braintrace plugins``: what is installed, and in which state."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .common import OK, REFUSED, Command, official

if TYPE_CHECKING:
    from ..plugins.records import PluginRecord

COLUMNS = ("family", "distribution", "version", "state", "names")


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print data instead of a table")
    parser.add_argument("--load", action="store_true", help="load every plugin that may be used")


def plugins(options: argparse.Namespace) -> int:
    """List the plugins; with ``--load`` the status is 1 when one of them does not load."""
    from ..plugins import metadata
    from ..plugins.process import host

    metadata.use_backport()
    records = host().load_all(strict=False) if options.load else host().records()
    absent = sorted(official() - {record.distribution for record in records})
    print(_as_json(records, absent) if options.json else _as_text(records, absent))
    broken = {"failed", "incompatible", "conflict"}
    return REFUSED if options.load and any(str(r.state) in broken for r in records) else OK


def _as_json(records: Iterable[PluginRecord], absent: Sequence[str]) -> str:
    data = {"plugins": [_data(record) for record in records], "not_installed": list(absent)}
    return json.dumps(data, indent=2, ensure_ascii=False)


def _data(record: PluginRecord) -> dict[str, Any]:
    """A record without the objects that JSON cannot hold."""
    exception = record.exception and f"{type(record.exception).__name__}: {record.exception}"
    return {**vars(record), "state": str(record.state), "exception": exception}


def _as_text(records: Sequence[PluginRecord], absent: Sequence[str]) -> str:
    rows = [COLUMNS] + [_row(record) for record in records]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows] if records else []
    lines = lines or ["no plugin is installed"]
    lines += [f"{r.distribution!r} {r.reason}" for r in records if r.reason]
    lines += [f"{r.distribution!r}: {problem}" for r in records for problem in r.problems]
    return "\n".join([*lines, *([f"not installed: {', '.join(absent)}"] if absent else [])])


def _row(record: PluginRecord) -> tuple[str, ...]:
    names = ", ".join(name.removeprefix("braintrace.") for name in record.exports)
    shown = names if len(names) <= 60 else f"{names[:57]}..."
    return record.family, record.distribution, record.version, str(record.state), shown


COMMAND = Command("list the plugins that are installed, with their state", _declare, plugins)
