# SPDX-License-Identifier: Apache-2.0
"""Measure gradients of sequences: D-RTRL in several forms, BPTT, and the peer library.

All contenders of a case have the same weights, inputs and loss, in float32. They run in turn, and
medians are compared; compile time and memory are listed apart. The peer, braintrace 0.2.6 from the
package index, is installed into an environment of its own (.venv-peer) and runs as a process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _bench import peer, report, settings
from _bench.race import race


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--short", action="store_true", help="small sizes, a few contenders")
    parser.add_argument(
        "--case", nargs="+", choices=settings.SIZES, metavar="CASE", help=", ".join(settings.SIZES)
    )
    parser.add_argument("--no-peer", action="store_true", help="leave out the peer library")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to a file")
    parser.add_argument("--compare", type=run_file, metavar="OLD.json", help="compare with a run")
    parser.add_argument("--figure", type=Path, metavar="PATH", help="draw the ratios to BPTT")
    found = parser.parse_args(arguments)
    for path in (found.json, found.figure):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"the folder of {str(path)!r} does not exist")
    return found


def run_file(text: str) -> Any:
    """The content of a file written by ``--json``."""
    try:
        found = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: {error}") from None
    if not isinstance(found, dict) or "cases" not in found:
        raise argparse.ArgumentTypeError(f"{text!r} was not written by --json")
    return found


def machine() -> dict[str, Any]:
    """Facts that a run is to be judged by."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit status: 1 when gradients disagree."""
    chosen = options(arguments)
    ours = (settings.BPTT, *(settings.SHORT_OURS if chosen.short else settings.OURS))
    teams: list[Any] = [(Path(sys.executable), ours)]
    if not chosen.no_peer:
        teams.append((peer.interpreter(), (settings.PEER,)))
    run: dict[str, Any] = {"machine": machine(), "cases": {}}
    problems = []
    for case in chosen.case or (settings.SHORT_CASES if chosen.short else settings.SIZES):
        sizes = settings.SHORT if chosen.short else settings.SIZES[case]
        effort = settings.QUICK if chosen.short else settings.FULL
        found = run["cases"][case] = race(case, sizes, teams, effort)
        problems += report.disagreements(case, found)
        print(f"\n{report.table(case, found)}", flush=True)
    print(f"\n{report.LEGEND}")
    if chosen.compare is not None:
        print(f"\n{report.comparison(run, chosen.compare)}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(run, indent=1) + "\n")
    if chosen.figure is not None:
        report.figure(run["cases"], chosen.figure)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"bench: {error}")
