# SPDX-License-Identifier: Apache-2.0
"""Measure this library against BPTT, the peer library, and what the machine can do.

Four parts: gradients of sequences and online learning (cases), compiling, importing, and memory.
All contenders of a case have the same weights, inputs and loss, in float32; what they compute is
compared before they are timed, and they run in turn. The peer is the newest braintrace distribution
of the package index for this Python, 0.2.8 from 3.12 on and 0.2.6 before; it is installed into an
environment of its own (.venv-peer) and runs as a process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _bench import compiling, memory, peer, picture, report, settings, starting
from _bench.race import race
from _bench.settings import FULL, QUICK, Sizes, contenders, model_of


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    cases, models = settings.SIZES, dict.fromkeys(map(model_of, settings.SIZES))
    add = parser.add_argument
    add("--short", action="store_true", help="try the program: small sizes, no peer, no targets")
    add("--part", nargs="+", choices=settings.PARTS, help="parts to run; default: all")
    add("--case", nargs="+", choices=cases, metavar="CASE", help=f"cases: {', '.join(cases)}")
    add("--sweep", choices=models, metavar="MODEL", help="vary the sizes of one model instead")
    add("--no-peer", action="store_true", help="leave out the peer library")
    add("--json", type=Path, metavar="PATH", help="write all that was measured")
    add("--compare", type=run_file, metavar="OLD.json", help="compare with a run")
    add("--figure", type=Path, metavar="PATH", help="draw times over that of BPTT")
    add("--markdown", type=Path, metavar="PATH", help="write the tables to a page, or into it")
    found = parser.parse_args(arguments)
    for path in (found.json, found.figure, found.markdown):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"the folder of {str(path)!r} does not exist")
    return found


def run_file(text: str) -> Any:
    """The content of a file written by ``--json``."""
    try:
        found = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read: {error}") from None
    if not isinstance(found, dict) or found.get("format") != settings.FORMAT:
        raise argparse.ArgumentTypeError(f"{text!r} was not written by this version's --json")
    return found


def machine() -> dict[str, Any]:
    """Facts that a run is to be judged by."""
    return {
        "processor": processor(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": load(),
    }


def load() -> float | None:
    """How many processes wanted a core in the last minute, where the system counts them."""
    average = getattr(os, "getloadavg", None)
    return None if average is None else round(average()[0], 1)


def cores() -> int:
    """How many cores the process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if available is None else len(available(0))


def processor() -> str:
    """The processor's model, or its architecture where the system does not say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def chosen_cases(chosen: argparse.Namespace) -> Iterator[tuple[str, Sizes]]:
    """Cases by name with their sizes."""
    if chosen.sweep is not None:
        yield from settings.sweep(chosen.sweep)
        return
    sizes = settings.SHORT_CASES if chosen.short else settings.SIZES
    default = chosen.case or ([*sizes] if chosen.part is None or "cases" in chosen.part else [])
    for case in default:
        yield case, sizes.get(case, settings.SHORT_SIZES)


def measure(chosen: argparse.Namespace, run: dict[str, Any]) -> list[str]:
    """Fill in a run and say on the way what is found; returns what disagrees."""
    pythons = {False: Path(sys.executable)}
    if not (chosen.no_peer or chosen.short):
        pythons[True] = peer.interpreter()
        run["peer"] = peer.REQUIREMENT
        print(f"The peer is {peer.REQUIREMENT}.", flush=True)
    effort = QUICK if chosen.short else FULL
    steps = settings.SHORT_ONLINE_STEPS if chosen.short else settings.ONLINE_STEPS
    problems = []
    for case, sizes in chosen_cases(chosen):
        team = contenders(case, chosen.short)
        found = race(case, sizes, steps, team, pythons, effort)
        run.setdefault("cases", {})[case] = found
        problems += report.disagreements(case, found, team)
        print(f"\n{report.text(case, found)}", flush=True)
    only_cases = chosen.sweep or chosen.case
    parts = chosen.part or (("cases",) if only_cases else settings.PARTS)
    rounds = 1 if chosen.short else 5
    if "compile" in parts:
        run["compile"] = compiling.measure(pythons, rounds, chosen.short)
    if "import" in parts:
        run["import"] = starting.measure(pythons, rounds)
    if "memory" in parts:
        run["memory"] = memory.measure(pythons[False], chosen.short)
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit status: 1 when results disagree."""
    chosen = options(arguments)
    run: dict[str, Any] = {"format": settings.FORMAT, "short": chosen.short, "machine": machine()}
    problems = measure(chosen, run)
    if "cases" in run:
        print(f"\n{report.LEGEND}")
    if len(report.others(run)) > 1:
        print("\n" + "\n".join(report.lines(report.others(run))))
    if not chosen.short and chosen.sweep is None:
        print("\nTargets\n" + "\n".join(report.lines(report.judged(run))))
    if chosen.compare is not None:
        print(f"\n{report.comparison(run, chosen.compare)}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(run, indent=1) + "\n")
    if chosen.figure is not None and "cases" in run:
        picture.draw(run["cases"], chosen.figure)
    if chosen.markdown is not None:
        report.write_markdown(run, chosen.markdown)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"bench: {error}")
