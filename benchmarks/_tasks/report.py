# SPDX-License-Identifier: Apache-2.0
"""What trainings gave, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from _tasks.catalogue import ACCURACY, BATCHES, BITS, TASKS
from _tasks.rules import RULES

FORMATS = {ACCURACY: "{:.3f}", BITS: "{:.3f}", BATCHES: "{:.0f}"}


@dataclass(frozen=True)
class Run:
    """One training: ``epochs`` as asked for (``None``: those of the task), wall time in seconds."""

    task: str
    rule: str
    seed: int
    epochs: int | None
    value: float
    seconds: float


def lines_of(name: str, runs: Sequence[Run]) -> list[str]:
    """The table of one task, with figures of a model without recurrence below."""
    task = TASKS[name]
    lines = [
        f"{name}. {task.title}: {task.measures}",
        f"   {'rule':<20}{'seeds':<26}{'mean':>8}   {'earlier':<20}{'s each':>8}",
    ]
    for rule, title in RULES.items():
        mine = [run for run in runs if (run.task, run.rule) == (name, rule)]
        if mine:
            lines.append(_line(name, rule, title, mine))
    return lines


def _line(name: str, rule: str, title: str, runs: Sequence[Run]) -> str:
    task = TASKS[name]
    show = FORMATS[task.measures].format
    values = [run.value for run in runs]
    if rule == "pp_prop":
        title += f", decay {task.work.decay}"
    seeds = " ".join(map(show, values))
    seconds = mean(run.seconds for run in runs)
    known = task.known.get(rule, "")
    return f"   {title:<20}{seeds:<26}{show(mean(values)):>8}   {known:<20}{seconds:>8.1f}"


def below(name: str) -> list[str]:
    """Lines of a model without recurrence and of published figures, if the task has them."""
    task, lines = TASKS[name], []
    if task.without is not None:
        title, compute = task.without
        lines.append(f"   {title}: {FORMATS[task.measures].format(compute())}")
    if task.published:
        lines.append(f"   published: {task.published}")
    return lines
