# SPDX-License-Identifier: Apache-2.0
"""Contenders run in turn, each library in its own process; what they took, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .processes import Process, process
from .settings import Contender, Effort, Sizes, reference

Arrays = Mapping[str, np.ndarray]


def race(
    case: str,
    sizes: Sizes,
    online_steps: int,
    contenders: Sequence[Contender],
    pythons: Mapping[bool, Path],
    effort: Effort,
) -> dict[str, Any]:
    """Measure the contenders on one case.

    Parameters
    ----------
    pythons
        The interpreter of this library, and under ``True`` that of the peer if it takes part.

    Returns
    -------
    dict
        ``sizes``, ``online_steps``; ``versions`` and ``limits`` (see :mod:`_bench.roofline`);
        under ``results``, per contender, ``build_s``, ``trace_s``, ``compile_s``, ``bytes``, lists
        ``wall`` and ``cpu`` of seconds, and ``distances`` of its results from those of its
        reference by array (``None`` for an array of zeros); or ``error``.
    """
    contenders = [one for one in contenders if one.peer in pythons]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        arguments = (case, sizes, online_steps)
        workers = {
            peer: stack.enter_context(process(python, "_bench.worker", *arguments))
            for peer, python in pythons.items()
        }
        results, arrays = prepared(contenders, workers, folder)
        for one in contenders:
            other = reference(one, case)
            if one.name in arrays and other is not None and other.name in arrays:
                results[one.name]["distances"] = distances(arrays[one.name], arrays[other.name])
        limits = workers[False].ask("limits", [c for c in contenders if not c.peer])
        run_in_turn([c for c in contenders if c.name in arrays], workers, results, effort)
        versions = {"peer" if p else "ours": worker.ask("facts") for p, worker in workers.items()}
    return {
        "sizes": sizes._asdict(),
        "online_steps": online_steps,
        "versions": versions,
        "limits": limits,
        "results": results,
    }


def prepared(
    contenders: Sequence[Contender], workers: Mapping[bool, Process], folder: Path
) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Compile all; their compile times and results. The peer may fail, which is a result, too."""
    results: dict[str, Any] = {}
    arrays: dict[str, Arrays] = {}
    for number, one in enumerate(contenders):
        path = folder / f"{number}.npz"
        found = workers[one.peer].ask("prepare", one, str(path))
        results[one.name] = {**found, "work": one.work}
        if "error" not in found:
            arrays[one.name] = dict(np.load(path))
        elif not one.peer:
            raise RuntimeError(f"{one.name!r} failed: {found['error']}")
    return results, arrays


def run_in_turn(
    contenders: Sequence[Contender],
    workers: Mapping[bool, Process],
    results: dict[str, Any],
    effort: Effort,
) -> None:
    """Time rounds of all contenders.

    The run for the gradients counts only for one that takes so long that it is not run again.
    """
    for one in contenders:
        first = results[one.name].pop("first")
        slow = first["wall"] > effort.seconds
        results[one.name] |= {clock: [first[clock]] if slow else [] for clock in ("wall", "cpu")}
    for _ in range(effort.rounds):
        for one in contenders:
            times = results[one.name]
            if sum(times["wall"]) < effort.seconds:
                for clock, seconds in workers[one.peer].ask("run", one.name).items():
                    times[clock].append(seconds)


def distances(a: Arrays, b: Arrays) -> list[float | None]:
    """The relative difference of each array, norm by norm; ``None`` where ``a`` is zero."""
    return [
        float(np.linalg.norm(a[key] - b[key]) / np.linalg.norm(b[key])) if a[key].any() else None
        for key in b
    ]
