# SPDX-License-Identifier: Apache-2.0
"""The example with ``brainpy.state`` neurons runs and learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("brainpy", reason="the example needs braintrace-core[neurons]")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def test_the_example_learns() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "neurons.py", "--epochs", "4"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "neurons.V, neurons.a" in done.stdout
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    (accuracy,) = re.findall(r"held-out accuracy ([\d.]+)", done.stdout)
    assert float(accuracy) > 0.2  # chance is 0.1
