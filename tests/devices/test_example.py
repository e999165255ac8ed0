# SPDX-License-Identifier: Apache-2.0
"""The example trains on eight devices, and as two processes, with the numbers of one device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .test_processes import free_port

for extra in ("matplotlib", "optax", "sklearn"):
    if find_spec(extra) is None:
        pytest.skip("the example needs braintrace-core[examples]", allow_module_level=True)

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "devices.py"


def start(devices: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The example in its quick form."""
    variables = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    variables |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    variables |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(PROGRAM), "--quick", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True)


def test_the_example(tmp_path: Path) -> None:
    port = free_port()
    both = ("--processes", "2", "--coordinator", f"127.0.0.1:{port}")
    groups = [
        [start(1, tmp_path)],
        [start(8, tmp_path, "--units", "2")],
        [start(4, tmp_path, *both, "--process", str(i)) for i in range(2)],
    ]
    found = []
    for running in groups:
        for process in running:
            said, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            (numbers,) = re.findall(r"mean loss (\d\.\d+), held-out accuracy ([\d.]+)", said)
            found.append([*map(float, numbers)])
    assert len(found) == 4
    for one in found[1:]:
        assert one == pytest.approx(found[0], abs=2e-5)
    assert (tmp_path / "devices.svg").is_file()
