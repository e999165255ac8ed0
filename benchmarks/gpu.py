# SPDX-License-Identifier: Apache-2.0
"""Measure this library on a GPU, beside BPTT and the peer, within a given time.

First gradients are compared with the CPU's float64. Then D-RTRL, pp_prop and an update at every
step are timed in turn with BPTT: time, memory, kernels per step. What is most important comes
first; after each part the results are written, and it ends before the time is up. ``dev.py gpu``
makes the folder that this program needs on a machine without a network.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _gpu import plan, table
from _gpu.measure import measure
from _gpu.workers import installed

SECONDS = (
    "that it takes at most; with more, slow answers are waited for longer; default: %(default)g"
)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where results.json and .md go, and XLA's programs",
    )
    add("--seconds", type=float, default=plan.SECONDS, help=SECONDS)
    add("--quick", action="store_true", help="try the program with tiny sizes")
    add("--no-peer", action="store_true", help="leave out the peer library")
    add("--no-checks", action="store_true", help="leave out the comparison with float64")
    cases = [case.name for case in plan.CASES]
    add("--case", nargs="+", choices=cases, metavar="CASE", help=f"cases: {', '.join(cases)}")
    return parser.parse_args(arguments)


def chosen_cases(chosen: argparse.Namespace) -> list[plan.Case]:
    """The cases to measure, the most important first."""
    cases = [case for case in plan.CASES if chosen.case is None or case.name in chosen.case]
    return plan.quick(cases) if chosen.quick else cases


def new_run(chosen: argparse.Namespace) -> dict[str, Any]:
    """A run in which nothing was measured yet."""
    parts: dict[str, Any] = {"checks": {}, "versions": {}, "cases": {}, "profiles": {}}
    facts = {"format": plan.FORMAT, "quick": chosen.quick, "seconds": 0.0, "left_out": []}
    return {**facts, **parts, "failed": {}}


def written(path: Path, text: str) -> None:
    """Write a file in one go: who ends the program meanwhile finds the one before."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit status: 1 when gradients are wrong."""
    chosen = options(arguments)
    budget = plan.Budget(chosen.seconds, patience=max(1.0, chosen.seconds / plan.SECONDS))
    chosen.out.mkdir(parents=True, exist_ok=True)
    run = new_run(chosen)

    def flush(done: str) -> None:
        run["seconds"] = budget.spent
        written(chosen.out / "results.json", json.dumps(run, indent=1) + "\n")
        written(chosen.out / "results.md", table.text(run))
        print(f"{budget.spent:5.0f} s: {done}", flush=True)

    with TemporaryDirectory() as folder:
        packages = installed(Path(folder))
        if chosen.no_peer:
            packages.pop("peer", None)
        flush(f"installed {', '.join(packages)}")
        cases, effort = chosen_cases(chosen), plan.QUICK_EFFORT if chosen.quick else plan.EFFORT
        archive = chosen.out / "programs.zip"
        archive.unlink(missing_ok=True)
        measure(run, cases, packages, effort, budget, flush, archive, checks=not chosen.no_checks)
        flush("the end")
    print(f"\n{table.text(run)}")
    problems = table.disagreements(run["checks"])
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the workers, too
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"gpu: {error}")
