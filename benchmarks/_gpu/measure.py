# SPDX-License-Identifier: Apache-2.0
"""Checks, timings and profiles, each within the time that is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from _bench.race import Arrays, distances
from _bench.settings import BPTT, DEFAULT, Contender, Effort, Sizes, model_of, reference

from .plan import (
    CASE_PART,
    CASE_S,
    CHECK_RATE,
    CHECKS,
    CHECKS_PART,
    DEFAULT_PRECISION,
    FLOAT32,
    ONLINE_STEPS,
    OURS,
    PREPARE_S,
    RATE,
    RUN_S,
    SPIKELESS,
    START_S,
    Budget,
    Case,
)
from .workers import CPU_DOUBLE, Guarded

Results = dict[str, Any]
CORES_PER_CHECK = 3
COPIED, COPIED_QUICK = 2**28, 2**22  # bytes of the array that the bandwidth is measured with


# --- gradients against the CPU's float64 ---------------------------------------------------------


def check_all(models: Sequence[str], packages: Path, budget: Budget) -> Results:
    """The errors of every model that is checked, several models at once."""
    together = max(1, (os.cpu_count() or 1) // CORES_PER_CHECK)
    with ThreadPoolExecutor(max_workers=together) as pool:
        found = pool.map(lambda model: check(model, CHECKS[model], packages, budget), models)
        return dict(zip(models, found, strict=True))


def unchecked(found: Results) -> list[str]:
    """The models of which a check did not come to an end."""
    return [
        model
        for model, by_precision in found.items()
        if any("error" in one for by_name in by_precision.values() for one in by_name.values())
    ]


def check(model: str, sizes: Sizes, packages: Path, budget: Budget) -> Results:
    """By precision and contender, the relative errors of all arrays of a result, or ``error``."""
    with TemporaryDirectory() as folder, Guarded(packages, CPU_DOUBLE) as cpu:
        start = (model, sizes, sizes.steps, FLOAT32, CHECK_RATE)
        exact, _ = prepared(OURS, cpu, start, Path(folder), budget)
        cpu.end()
        with Guarded(packages) as gpu:
            teams = {FLOAT32: OURS, DEFAULT_PRECISION: (BPTT, DEFAULT)}
            return {
                precision: errors(exact, gpu, (model, sizes, precision), team, budget)
                for precision, team in teams.items()
                if precision == FLOAT32 or model in SPIKELESS
            }


def errors(
    exact: Mapping[str, Any],
    gpu: Guarded,
    case: tuple[str, Sizes, str],
    team: Sequence[Contender],
    budget: Budget,
) -> Results:
    """The distances of what the GPU computes from ``exact``."""
    model, sizes, precision = case
    with TemporaryDirectory() as folder:
        start = (model, sizes, sizes.steps, precision, CHECK_RATE)
        arrays, found = prepared(team, gpu, start, Path(folder), budget)
    return {
        one.name: {"distances": distances(arrays[one.name], exact[one.name])}
        if one.name in arrays and one.name in exact
        else {"error": found[one.name].get("error", "no reference")}
        for one in team
    }


def prepared(
    team: Sequence[Contender],
    worker: Guarded,
    case: Sequence[Any],
    folder: Path,
    budget: Budget,
    timed: bool = False,
) -> tuple[dict[str, Arrays], Results]:
    """Start a case and compile a team: the results' arrays, and what was found of each.

    One that ends the process is its own loss: the next is compiled by another process. ``timed``:
    each is run once more at once, so that it has a time whatever happens to those after it.
    """
    arrays: dict[str, Arrays] = {}
    found: Results = {}
    started: Results = {}
    for number, one in enumerate(team):
        path = folder / f"{number}.npz"
        if "error" not in started and (number == 0 or worker.running is None):
            started = worker.start(budget.at_most(START_S), *case)
        answer = started
        if "error" not in started:
            answer = worker.ask(budget.at_most(PREPARE_S), "prepare", one, str(path))
        found[one.name] = {**answer, "work": one.work, "process": worker.number, "wall": []}
        if "error" not in answer:
            arrays[one.name] = dict(np.load(path))
            path.unlink()
            if timed:
                run_once(one, found[one.name], worker, budget)
    return arrays, found


def run_once(one: Contender, result: Results, worker: Guarded, budget: Budget) -> None:
    """Add the seconds of one more run to a result, or ``error``."""
    answer = worker.ask(budget.at_most(RUN_S), "run", one.name)
    if "error" in answer:
        result["error"] = answer["error"]
    else:
        result["wall"].append(answer["wall"])


# --- times ---------------------------------------------------------------------------------------


def time_case(
    case: Case, workers: Mapping[bool, Guarded], effort: Effort, budget: Budget, archive: Path
) -> Results:
    """Compile a team, compare results of the same rule, and run it in turn.

    ``workers`` has this library's process, and under ``True`` that of the peer if it takes part.
    The compiled programs go into ``archive``.
    """
    arrays: dict[str, Arrays] = {}
    results: Results = {}
    for peer, worker in workers.items():
        team = [one for one in case.team if one.peer == peer]
        if team:
            with TemporaryDirectory() as folder:
                start = (case.name, case.sizes, ONLINE_STEPS, case.precision, RATE)
                more, found = prepared(team, worker, start, Path(folder), budget, timed=True)
                keep_programs(case, team, Path(folder), archive)
            arrays |= more
            results |= found
    for one in case.team:
        other = reference(one, case.name)
        if one.name in arrays and other is not None and other.name in arrays:
            results[one.name]["distances"] = distances(arrays[one.name], arrays[other.name])
    take_turns([one for one in case.team if one.name in arrays], workers, results, effort, budget)
    return {"sizes": case.sizes._asdict(), "precision": case.precision, "results": results}


def keep_programs(case: Case, team: Sequence[Contender], folder: Path, archive: Path) -> None:
    """Add the programs that :func:`prepared` left in a folder to an archive."""
    with ZipFile(archive, "a", ZIP_DEFLATED) as found:
        for number, one in enumerate(team):
            path = folder / f"{number}.txt"
            if path.exists():
                found.write(path, f"{case.name}/{one.name}.txt")


def take_turns(
    team: Sequence[Contender],
    workers: Mapping[bool, Guarded],
    results: Results,
    effort: Effort,
    budget: Budget,
) -> None:
    """Time rounds of a team; one that takes long sits out the rest, at the latest at the end of
    the budget, and so does one whose process another has ended. The first run, which may have been
    slowed down by loading, counts for none."""
    for _ in range(effort.rounds):
        for one in team:
            result, worker = results[one.name], workers[one.peer]
            late = budget.left < 1 + 2 * max(result["wall"], default=result["first_s"])
            gone = worker.running is None or result["process"] != worker.number
            if not ("error" in result or sum(result["wall"]) > effort.seconds or late or gone):
                run_once(one, result, worker, budget)


# --- what the profiler sees ----------------------------------------------------------------------


def profile_case(case: Case, packages: Path, budget: Budget) -> Results:
    """Kernels and copies that a team starts, and their seconds, in a process of its own."""
    with TemporaryDirectory() as folder, Guarded(packages) as worker:
        start = (case.name, case.sizes, ONLINE_STEPS, case.precision, RATE)
        _, found = prepared(case.team, worker, start, Path(folder), budget)
        for one in case.team:
            if "error" not in found[one.name]:
                answer = worker.ask(budget.at_most(RUN_S), "profile", one.name)
                found[one.name] |= answer
    kept = ("work", "steps", "kernels", "copies", "busy_s", "error")
    results = {name: {k: one[k] for k in kept if k in one} for name, one in found.items()}
    return {"sizes": case.sizes._asdict(), "precision": case.precision, "results": results}


# --- all of it -----------------------------------------------------------------------------------


def measure(
    run: Results,
    cases: Sequence[Case],
    packages: Mapping[str, Path],
    effort: Effort,
    budget: Budget,
    flush: Callable[[str], None],
    archive: Path,
    checks: bool = True,
) -> None:
    """Fill in a run, the most important first, and ``flush`` after every part."""
    with Guarded(packages["ours"]) as ours, Guarded(packages.get("peer", Path())) as peer:
        workers = {False: ours} | ({True: peer} if "peer" in packages else {})
        introduce(run, workers, budget)
        if checks:
            models = [*dict.fromkeys(model_of(case.name) for case in cases)]
            share = budget.part(CHECKS_PART)
            run["checks"] = check_all(models, packages["ours"], share)
            flush("checks")
        for case in cases:
            if budget.left < CASE_S:
                run["left_out"].append(case.name)
                continue
            chosen = case._replace(team=tuple(one for one in case.team if one.peer in workers))
            share = budget.part(max(CASE_PART, 1 / len(cases)))
            try:
                if case.kind == "profile":
                    run["profiles"][case.name] = profile_case(chosen, packages["ours"], share)
                else:
                    run["cases"][case.name] = time_case(chosen, workers, effort, share, archive)
            except Exception as error:  # of one case, which says nothing about the others
                run["failed"][case.name] = f"{type(error).__name__}: {error}"
            flush(case.name)
        if (late := unchecked(run["checks"])) and budget.left >= CASE_S:
            run["checks"] |= check_all(late, packages["ours"], budget)
            flush(f"checks of {', '.join(late)} once more")


def introduce(run: Results, workers: Mapping[bool, Guarded], budget: Budget) -> None:
    """Versions, device and bandwidth.

    Raises
    ------
    RuntimeError
        Where there is no GPU, unless the program is only tried.
    """
    for peer, worker in workers.items():
        worker.start(budget.at_most(START_S), "gru", CHECKS["gru"], 1, FLOAT32, RATE)
        facts = worker.ask(budget.at_most(RUN_S), "facts")
        run["versions"]["peer" if peer else "ours"] = facts
    ours = run["versions"]["ours"]
    if ours.get("backend") != "gpu" and not run["quick"]:
        raise RuntimeError(f"there is no GPU that JAX can use: {ours}")
    size = COPIED_QUICK if run["quick"] else COPIED
    run["bandwidth"] = workers[False].ask(budget.at_most(RUN_S), "bandwidth", size)
