# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of networks with leaks, beside an earlier build (docs/benchmarks.md).

``.venv/bin/python benchmarks/leaks.py --before ../before/.venv/bin/python`` takes the Python
of an environment with the earlier build, which runs as a process. Gradients are compared first, in
float64: with those of the network whose leak was moved by hand, by the earlier build, and with
BPTT of the network with recurrent input held. Then the contenders of a case run in turn, and ratios
of medians of the processor's time are compared with their targets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _bench.leaks import HELD, MOVED, WRITTEN, Case
from _bench.processes import Process

#: The largest relative difference of two gradients in float64.
EQUAL = 1e-9
#: What machines differ by between two runs of one program.
NOISE = 0.05


DRIVERS = {
    "update": "an update at every step",
    "gradient": "the gradient of a sequence",
    "fresh": "the same, trace not kept",
}


class Target(NamedTuple):
    """The most that a ratio may be: of times or of bytes, of this build and an earlier one."""

    what: str
    form: str
    most: float


def gradients(most: float) -> list[Target]:
    """Targets of the gradient of a sequence."""
    return [Target(driver, WRITTEN, most) for driver in ("gradient", "fresh")]


def updates(most: float, half: bool = False) -> list[Target]:
    """Targets of an update at every step."""
    return [Target("update", WRITTEN, most)] + half * [Target("update", MOVED, 0.5)]


#: A layer, what is above it, sizes, and targets; parameters are named by their path.
CASES: tuple[tuple[Case, list[Target]], ...] = (
    (
        Case("soft", "product", 1024, 1024, 16, 20),
        [*updates(1 / 6), Target("all", WRITTEN, 1 / 50)],
    ),
    (
        Case("soft", "product", 256, 256, 64, 50),
        [*updates(1 / 3.5), Target("all", WRITTEN, 1 / 50)],
    ),
    (
        Case("soft", "leak", 256, 256, 64, 50),
        [*updates(1), Target("readout.weight", WRITTEN, 1 / 5)],
    ),
    (
        Case("cuba", "leak", 256, 256, 64, 50),
        [*updates(1), Target("low.product.weight", WRITTEN, 1 / 2)],
    ),
    (
        Case("hard", "leak", 256, 256, 64, 50),
        [*updates(2.2, half=True), *gradients(1.3)],
    ),
    (
        Case("gru", "leak", 64, 256, 64, 50),
        [*updates(2.2, half=True), *gradients(1.3)],
    ),
    (Case("hard", "product", 256, 256, 64, 50), [*updates(1), *gradients(1)]),
    (Case("gru", "product", 64, 256, 64, 50), [*updates(1), *gradients(1)]),
)
SMALL = {"inputs": 6, "units": 12, "batch": 3, "steps": 30}
SHORT = {"inputs": 4, "units": 6, "batch": 2, "steps": 4}


def workers(stack: ExitStack, pythons: Mapping[str, Path], case: Case, **env: str) -> Any:
    """A process of each build for a case."""

    def start(python: Path) -> Process:
        one = Process(python, "_bench.leaks", *case, **env)
        stack.callback(one.process.communicate)
        return one

    return {build: start(python) for build, python in pythons.items()}


def disagreements(pythons: Mapping[str, Path], case: Case) -> Iterator[str]:
    """Where gradients of a small network differ, in float64."""
    with ExitStack() as stack:
        both = workers(stack, pythons, case, JAX_ENABLE_X64="1")
        ours = both["ours"].ask("gradients", WRITTEN)
        for build, form in (("before", MOVED), ("ours", HELD)):
            other = both[build].ask("gradients", form)
            for name, own in other.items():
                size = np.linalg.norm(own)
                if size and (far := np.linalg.norm(np.subtract(own, ours[name])) / size) > EQUAL:
                    yield f"{case.below} below {case.above}: {name} is {far:.1e} from {form}"


def measured(
    pythons: Mapping[str, Path], case: Case, targets: Sequence[Target], rounds: int
) -> list[tuple[Target, float]]:
    """The ratio of each target."""
    with ExitStack() as stack:
        both = workers(stack, pythons, case)
        drivers = dict.fromkeys(t for t in targets if t.what in DRIVERS)
        runs = dict.fromkeys(
            run for t in drivers for run in (("ours", WRITTEN, t.what), ("before", t.form, t.what))
        )
        for build, *how in runs:
            both[build].ask("prepare", " ".join(how), *how)
        times: dict[Any, list[float]] = {run: [] for run in runs}
        for _ in range(rounds):
            for run in runs:
                times[run].append(both[run[0]].ask("run", " ".join(run[1:])))
        middle = {run: statistics.median(found) for run, found in times.items()}
        for run, seconds in middle.items():
            print(f"    {' '.join(run)}: {1e3 * seconds / case.steps:.2f} ms a step", flush=True)
        held = {build: one.ask("traces", WRITTEN) for build, one in both.items()}

    def ratio(one: Target) -> float:
        if one in drivers:
            return middle["ours", WRITTEN, one.what] / middle["before", one.form, one.what]
        own, before = (held[build].get(one.what, 0) for build in ("ours", "before"))
        return own / before if before else float("nan")

    return [(one, ratio(one)) for one in targets]


def row(case: Case, target: Target, ratio: float) -> str:
    """A line of the table."""
    sizes = f"{case.inputs} -> {case.units}, batch {case.batch}"
    shown = DRIVERS.get(target.what, f"memory, traces of {target.what}")
    beside = ", beside the one moved by hand" if target.form == MOVED else ""
    exactly = target.most == 1
    verdict = "met" if ratio <= target.most + NOISE * exactly else "NOT MET"
    name = f"{case.below} below a {case.above}, {sizes}"
    return f"| {name} | {shown}{beside} | {ratio:.3g} | {target.most:.3g} | {verdict} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 when gradients disagree."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--before", type=Path, required=True, help="the Python of an earlier build")
    add("--ours", type=Path, default=Path(sys.executable), help="that of this build")
    add("--rounds", type=int, default=7, help="how often each runs")
    add("--case", nargs="+", type=int, default=range(len(CASES)), help="which cases, by number")
    add("--short", action="store_true", help="try the program with tiny sizes")
    chosen = parser.parse_args(arguments)
    pythons = {"ours": chosen.ours, "before": chosen.before}
    cases = [CASES[number] for number in chosen.case]
    problems, rows = [], []
    for case, targets in cases:
        small = case._replace(**(SHORT if chosen.short else SMALL))
        problems += disagreements(pythons, small)
        print(f"{case.below} below a {case.above}", flush=True)
        found = measured(pythons, small if chosen.short else case, targets, chosen.rounds)
        rows += [row(case, *one) for one in found]
        print("\n".join(rows[-len(found) :]), flush=True)
    head = "| network | what | this build / before | at most | |\n|---|---|--:|--:|---|"
    print("\n".join(["", head, *rows]))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
