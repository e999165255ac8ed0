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
from _bench.settings import BPTT, DEFAULT, Contender, Effort, Sizes, reference

from .plan import (
    CASE_S,
    CHECK_RATE,
    CHECKS,
    DEFAULT_PRECISION,
    FLOAT32,
    ONLINE_STEPS,
    OURS,
    PREPARE_S,
    RATE,
    RUN_S,
    SPIKELESS,
    Budget,
    Case,
)
from .workers import CPU_DOUBLE, Guarded

Results = dict[str, Any]
CORES_PER_CHECK = 3


# --- gradients against the CPU's float64 ---------------------------------------------------------


def check_all(packages: Path, budget: Budget) -> Results:
    """The errors of every model that is checked, several models at once."""
    together = max(1, (os.cpu_count() or 1) // CORES_PER_CHECK)
    with ThreadPoolExecutor(max_workers=together) as pool:
        found = pool.map(lambda model: check(model, CHECKS[model], packages, budget), CHECKS)
        return dict(zip(CHECKS, found, strict=True))


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
) -> tuple[dict[str, Arrays], Results]:
    """Start a case and compile a team: the results' arrays, and what was found of each."""
    arrays: dict[str, Arrays] = {}
    found: Results = {}
    started = worker.start(budget.at_most(PREPARE_S), *case)
    for number, one in enumerate(team):
        path = folder / f"{number}.npz"
        answer = started
        if "error" not in started:
            answer = worker.ask(budget.at_most(PREPARE_S), "prepare", one, str(path))
        found[one.name] = {**answer, "work": one.work}
        if "error" not in answer:
            arrays[one.name] = dict(np.load(path))
            path.unlink()
    return arrays, found


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
                more, found = prepared(team, worker, start, Path(folder), budget)
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
    the budget. The first run, which may have been slowed down by loading, counts for none."""
    for one in team:
        results[one.name]["wall"] = []
    for _ in range(effort.rounds):
        for one in team:
            result = results[one.name]
            late = budget.left < 1 + 2 * max(result["wall"], default=result["first_s"])
            if "error" in result or sum(result["wall"]) > effort.seconds or late:
                continue
            answer = workers[one.peer].ask(budget.at_most(RUN_S), "run", one.name)
            if "error" in answer:
                result["error"] = answer["error"]
            else:
                result["wall"].append(answer["wall"])


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
            run["checks"] = check_all(packages["ours"], budget)
            flush("checks")
        for case in cases:
            if budget.left < CASE_S:
                run["left_out"].append(case.name)
                continue
            chosen = case._replace(team=tuple(one for one in case.team if one.peer in workers))
            if case.kind == "profile":
                run["profiles"][case.name] = profile_case(chosen, packages["ours"], budget)
            else:
                run["cases"][case.name] = time_case(chosen, workers, effort, budget, archive)
            flush(case.name)


def introduce(run: Results, workers: Mapping[bool, Guarded], budget: Budget) -> None:
    """Versions, device and bandwidth.

    Raises
    ------
    RuntimeError
        Where there is no GPU, unless the program is only tried.
    """
    for peer, worker in workers.items():
        worker.start(budget.at_most(PREPARE_S), "gru", CHECKS["gru"], 1, FLOAT32, RATE)
        facts = worker.ask(budget.at_most(RUN_S), "facts")
        run["versions"]["peer" if peer else "ours"] = facts
    ours = run["versions"]["ours"]
    if ours.get("backend") != "gpu" and not run["quick"]:
        raise RuntimeError(f"there is no GPU that JAX can use: {ours}")
    run["bandwidth"] = workers[False].ask(budget.at_most(RUN_S), "bandwidth")
