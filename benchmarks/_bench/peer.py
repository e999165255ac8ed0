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
REQUIREMENT = "braintrace==0.2.6"


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
    mark, wanted = FOLDER / "peer-stamp", f"{REQUIREMENT}\n{sys.version}"
    if python.exists() and mark.is_file() and mark.read_text() == wanted:
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
    mark.write_text(wanted)
    return python
