# SPDX-License-Identifier: Apache-2.0
"""Contenders run in turn, each library in its own process; what they took, and how they differ."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from _bench.settings import OURS, Contender, Effort, Sizes

FOLDER = Path(__file__).resolve().parents[1]
Arrays = Mapping[str, np.ndarray]


class Process:
    """A worker process, asked through pipes."""

    def __init__(self, python: Path, case: str, sizes: Sizes) -> None:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        self.process = subprocess.Popen(
            [python, "-m", "_bench.worker", case, json.dumps(sizes)],
            cwd=FOLDER,
            env={"JAX_PLATFORMS": "cpu", **kept, "JAX_ENABLE_X64": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """One request and its answer."""
        to, back = self.process.stdin, self.process.stdout
        if to is None or back is None:
            raise RuntimeError("the worker has no pipes")
        print(json.dumps(request), file=to, flush=True)
        answer = back.readline()
        if not answer:
            raise RuntimeError(f"the worker ended while it was asked to {request[0]}; see above")
        return json.loads(answer)


@contextmanager
def worker(python: Path, case: str, sizes: Sizes) -> Iterator[Process]:
    """A worker that ends with the block."""
    running = Process(python, case, sizes)
    try:
        yield running
    finally:
        running.process.communicate()


def race(
    case: str, sizes: Sizes, teams: Sequence[tuple[Path, Sequence[Contender]]], effort: Effort
) -> dict[str, Any]:
    """Measure the contenders of several interpreters on one case.

    Returns
    -------
    dict
        ``sizes``; ``versions`` per team; per contender, under ``results``, ``graph_s``,
        ``compile_s``, ``bytes``, lists ``wall`` and ``cpu`` of seconds, and ``distances`` of its
        gradients from those of the first of ``OURS``, by parameter array.
    """
    results: dict[str, dict[str, Any]] = {}
    gradients: dict[str, Arrays] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        asked: dict[str, Process] = {}
        versions = []
        for python, contenders in teams:
            process = stack.enter_context(worker(python, case, sizes))
            versions.append(process.ask("facts"))
            for contender in contenders:
                path = folder / f"{len(asked)}.npz"
                found = process.ask("prepare", contender, str(path))
                arrays: Arrays = dict(np.load(path))
                results[contender.name] = {**found, "wall": [], "cpu": []}
                gradients[contender.name], asked[contender.name] = arrays, process
        for name, arrays in gradients.items():
            results[name]["distances"] = distances(arrays, gradients[OURS[0].name])
        for _ in range(effort.rounds):
            for name, process in asked.items():
                times = results[name]
                if sum(times["wall"]) < effort.seconds:
                    for clock, seconds in process.ask("run", name).items():
                        times[clock].append(seconds)
    return {"sizes": sizes._asdict(), "versions": versions, "results": results}


def distances(a: Arrays, b: Arrays) -> list[float]:
    """The relative difference of the gradients of each parameter array, norm by norm."""
    return [float(np.linalg.norm(a[key] - b[key]) / np.linalg.norm(b[key])) for key in b]
