# SPDX-License-Identifier: Apache-2.0
"""The peer library in an environment of its own: it owns the same import name as this one."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / os.environ.get("VENV_PEER", ".venv-peer")
#: The newest peer, by the oldest Python that it is for.
NEWEST = {(3, 12): "0.2.8", (3, 11): "0.2.6"}


def requirement(python: tuple[int, ...] = sys.version_info[:2]) -> str:
    """The newest peer for a Python, this one unless told."""
    return f"braintrace=={next(peer for oldest, peer in NEWEST.items() if python >= oldest)}"


REQUIREMENT = requirement()
VERSION = REQUIREMENT.rpartition("=")[2]


def interpreter() -> Path:
    """The peer's Python; its environment is made when it is missing or of another Python.

    Its JAX and brainstate are those of this project's constraints, so that only the library
    differs.

    Raises
    ------
    RuntimeError
        When it cannot be installed.
    """
    python = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and _answer(python) == _answer(Path(sys.executable), VERSION):
        return python
    if FOLDER.exists() and not (FOLDER / "pyvenv.cfg").is_file():
        raise RuntimeError(f"{FOLDER} is in the way: it is not a virtual environment")
    print(f"Installing the peer, {REQUIREMENT}, into {FOLDER.name} ...", flush=True)
    venv.create(FOLDER, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--constraint", str(ROOT / "constraints.txt"), REQUIREMENT]
    done = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stdout}\npip could not install {REQUIREMENT}")
    return python


def _answer(python: Path, version: str = "") -> str:
    """The Python of an environment and the version of the peer in it (or the one given)."""
    found = repr(version) if version else "importlib.metadata.version('braintrace')"
    code = f"import importlib.metadata, sys; print(sys.version, {found})"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout
