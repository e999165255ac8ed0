# SPDX-License-Identifier: Apache-2.0
"""Processes of either library that are given up when they do not answer in time."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from _bench.processes import FOLDER, Process

from .bundle import SETS, WHEELS

MODULE = "_gpu.worker"
NO_TIME = "no time was left"
Packages = Mapping[str, Path]
#: No memory of the GPU is held before it is used, for another process is there; less chatter.
GPU = {
    "JAX_PLATFORMS": "",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
CPU_DOUBLE = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


def installed(target: Path) -> dict[str, Path]:
    """Unpack each set of wheels that lies beside the program into a folder of its own.

    That needs no pip. Without wheels, as in a checkout, this library is the installed one, and
    there is no peer.
    """
    bundle = FOLDER.parent
    if not (bundle / SETS).is_file():
        return {"ours": target / "none"}
    sets = json.loads((bundle / SETS).read_text())
    for name, files in sets.items():
        for wheel in (bundle / WHEELS / file for file in files):
            if wheel.is_file():  # those of JAX itself are not carried
                with ZipFile(wheel) as packed:
                    packed.extractall(target / name)
    return {name: target / name for name in sets}


class Guarded:
    """A worker process; what does not come in time ends it, and the next start makes another."""

    def __init__(self, packages: Path, env: Mapping[str, str] = GPU) -> None:
        self.env = {**env, "PYTHONPATH": str(packages)}
        self.running: Process | None = None
        self.number = 0  # of processes so far: the present one knows what it has prepared itself

    def start(self, seconds: float, *case: Any) -> dict[str, Any]:
        """Begin with a case."""
        if self.running is None and seconds > 0:
            try:
                self.running = Process(Path(sys.executable), MODULE, **self.env)
            except OSError as error:
                return {"error": f"no process could be started: {error}"}
            self.number += 1
        return self.ask(seconds, "start", *case)

    def ask(self, seconds: float, *request: Any) -> dict[str, Any]:
        """The answer to a request, or ``error``."""
        running = self.running
        if running is None or seconds <= 0:
            return {"error": NO_TIME if seconds <= 0 else "its process has ended"}
        timer = threading.Timer(seconds, running.process.kill)
        timer.start()
        try:
            return dict(running.ask(*request))
        except (RuntimeError, OSError, ValueError):
            self.end()
            return {"error": f"the process ended, or gave no answer in {seconds:.0f} s"}
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process, if there is one."""
        if self.running is not None:
            self.running.process.kill()
            self.running.process.communicate()  # closes the pipes, too
            self.running = None

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
