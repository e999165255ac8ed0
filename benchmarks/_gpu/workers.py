# SPDX-License-Identifier: Apache-2.0
"""Processes of either library that are given up when they do not answer in time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _bench.processes import FOLDER, Process

from .bundle import SETS, WHEELS

MODULE = "_gpu.worker"
Packages = Mapping[str, Path]
#: No memory of the GPU is held before it is used, for another process is there; less chatter.
GPU = {
    "JAX_PLATFORMS": "",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
CPU_DOUBLE = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


def installed(target: Path) -> dict[str, Path]:
    """Install each set of wheels that lies beside the program into a folder of its own.

    Without wheels, as in a checkout, this library is the installed one, and there is no peer.
    """
    bundle = FOLDER.parent
    if not (bundle / SETS).is_file():
        return {"ours": target / "none"}
    sets = json.loads((bundle / SETS).read_text())
    for name, files in sets.items():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
        command += ["--find-links", str(bundle / WHEELS), "--target", str(target / name)]
        wheels = [str(bundle / WHEELS / file) for file in files if _is_there(bundle, file)]
        subprocess.run([*command, *wheels], check=True)
    return {name: target / name for name in sets}


def _is_there(bundle: Path, file: str) -> bool:
    """Whether a wheel is carried: those of JAX itself are not."""
    return (bundle / WHEELS / file).is_file()


class Guarded:
    """A worker process; what does not come in time ends it, and the next start makes another."""

    def __init__(self, packages: Path, env: Mapping[str, str] = GPU) -> None:
        self.env = {**env, "PYTHONPATH": str(packages)}
        self.running: Process | None = None

    def start(self, seconds: float, *case: Any) -> dict[str, Any]:
        """Begin with a case."""
        if self.running is None:
            self.running = Process(Path(sys.executable), MODULE, **self.env)
        return self.ask(seconds, "start", *case)

    def ask(self, seconds: float, *request: Any) -> dict[str, Any]:
        """The answer to a request, or ``error``."""
        running = self.running
        if running is None or seconds <= 0:
            return {"error": "its process has ended" if running is None else "no time was left"}
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
