# SPDX-License-Identifier: Apache-2.0
"""Train networks online on real tasks, beside backpropagation through time (BPTT).

Every rule starts from the same weights of each seed. The column "earlier" has figures that were
measured with hand-written JAX; docs/tasks.md describes the tasks. With --stream, one network learns
from an endless text instead, and the memory of the process is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import jax
from _tasks import report, stream
from _tasks.catalogue import TASKS, missing
from _tasks.classify import Classification
from _tasks.report import Run
from _tasks.rules import RULES


def whole_number(least: int) -> Callable[[str], int]:
    """A type of argument: a whole number of at least ``least``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text!r}"
            )
        return value

    return convert


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser(prog="tasks.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add, names = parser.add_argument, ", ".join(TASKS)
    add("--task", nargs="+", choices=TASKS, metavar="TASK", help=f"{names} (default: A to J)")
    add("--rule", nargs="+", choices=RULES, default=list(RULES)[:3], metavar="RULE",
        help=f"{', '.join(RULES)} (default: the first three)")  # fmt: skip
    add("--seeds", type=whole_number(1), default=3, metavar="N", help="trainings of each")
    add("--epochs", type=whole_number(0), metavar="N", help="passes, instead of the task's own")
    add("--memory", action="store_true", help="measure that of gradients, at T and at 4 T")
    add("--json", type=Path, metavar="FILE", help="write all figures to a file")
    add("--stream", type=whole_number(1), metavar="STEPS", help="learn so many steps of a stream")
    found = parser.parse_args(arguments)
    if found.json is not None and not found.json.absolute().parent.is_dir():
        parser.error(f"the folder of {str(found.json)!r} does not exist")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and return the exit status."""
    chosen = options(arguments)
    jax.config.update("jax_enable_x64", False)  # float32 whatever the environment says
    found = streams(chosen) if chosen.stream else trainings(chosen)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def trainings(chosen: argparse.Namespace) -> list[dict[str, object]]:
    """Train every chosen task by every chosen rule; print a table of each task."""
    runs: list[Run] = []
    for name in chosen.task or [name for name in TASKS if name != "control"]:
        if missing(name):
            print(f"left out: {missing(name)}\n", file=sys.stderr, flush=True)
            continue
        for rule in chosen.rule:
            runs += trained(name, rule, chosen.seeds, chosen.epochs)
        print("\n".join([*report.lines_of(name, runs), *report.below(name)]))
        if chosen.memory:
            print("\n".join(memory(name, chosen.rule)))
        print(flush=True)
    return [{**asdict(run), "value": finite(run.value)} for run in runs]


def finite(value: float) -> float | None:
    """``None`` for a goal that was never reached: JSON has no infinity."""
    return value if math.isfinite(value) else None


def trained(name: str, rule: str, seeds: int, epochs: int | None) -> list[Run]:
    """Trainings from several seeds: one after the other, or together if the task says so."""
    work, runs = TASKS[name].work, []
    together = getattr(work, "together", False)
    for batch in [range(seeds)] if together else [[seed] for seed in range(seeds)]:
        start = time.perf_counter()
        if together:
            values = work.train_together(rule, batch, epochs)
        else:
            values = [work.train(rule, seed, epochs) for seed in batch]
        seconds = (time.perf_counter() - start) / len(batch)
        runs += [
            Run(name, rule, seed, epochs, value, seconds)
            for seed, value in zip(batch, values, strict=True)
        ]
    return runs


def memory(name: str, rules: Sequence[str]) -> list[str]:
    """Lines of the memory of a compiled gradient, for sequences as they are and four times so."""
    work = TASKS[name].work
    if not isinstance(work, Classification):
        return [f"   memory is not measured in {name}"]
    lines = []
    for rule in rules:
        once, four = (work.memory(rule, longer) / 2**20 for longer in (1, 4))
        lines.append(
            f"   {RULES[rule]:<20}{once:9.2f} MiB of temporary arrays, {four:9.2f} MiB at 4 T"
        )
    return lines


def streams(chosen: argparse.Namespace) -> list[dict[str, object]]:
    """Learn from a stream by every chosen online rule; print the memory on the way."""
    marks = []
    for rule in chosen.rule:
        if rule == "bptt":
            continue
        print(f"{RULES[rule]}, updates every 32 steps")
        for mark in stream.run(rule, chosen.stream):
            print(stream.line(mark), flush=True)
            marks.append({"rule": rule, **asdict(mark)})
    return marks


if __name__ == "__main__":
    sys.exit(main())
