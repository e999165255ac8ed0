# SPDX-License-Identifier: Apache-2.0
"""Processes that answer requests: one JSON line each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]


def variables(python: Path, **more: str) -> dict[str, str]:
    """Environment variables for a process that measures: float32, on the CPU unless told.

    Paths of sources are passed on to the Python that runs the program, not to the peer's.
    """
    own = python == Path(sys.executable)
    dropped = ("PYTHONHOME",) if own else ("PYTHONPATH", "PYTHONHOME")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return {"JAX_PLATFORMS": "cpu", **kept, "JAX_ENABLE_X64": "0", **more}


class Process:
    """A worker process, asked through pipes; ``env`` adds to :func:`variables`."""

    def __init__(self, python: Path, module: str, *arguments: Any, **env: str) -> None:
        self.process = subprocess.Popen(
            [python, "-m", module, json.dumps(arguments)],
            cwd=FOLDER,
            env=variables(python, **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        """One request, a method and its arguments, and its answer."""
        to, back = self.process.stdin, self.process.stdout
        if to is None or back is None:
            raise RuntimeError("the worker has no pipes")
        print(json.dumps(request), file=to, flush=True)
        answer = back.readline()
        if not answer:
            raise RuntimeError(f"the worker ended while it was asked to {request[0]}; see above")
        return json.loads(answer)


@contextmanager
def process(python: Path, module: str, *arguments: Any) -> Iterator[Process]:
    """A worker that ends with the block."""
    running = Process(python, module, *arguments)
    try:
        yield running
    finally:
        running.process.communicate()


def run_json(python: Path, module: str, *arguments: Any, env: Mapping[str, str]) -> Any:
    """What a process prints for its arguments, as JSON."""
    done = subprocess.run(
        [python, "-m", module, json.dumps(arguments)],
        cwd=FOLDER,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with status {done.returncode}; see above")
    return json.loads(done.stdout)


def serve(worker: Any) -> None:
    """Answer on the standard output, which nothing else writes to, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, method)(*arguments)), file=answers, flush=True)
