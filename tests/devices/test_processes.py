# SPDX-License-Identifier: Apache-2.0
"""Two processes of four devices on loopback compute what one device does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from braintrace.testing import assert_tree_close

from . import everything
from .shared_cases import PARTS, cases, gradient, learner
from .worker import PROCESSES

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.parametrize("part", range(PARTS))
def test_two_processes(part: int, tmp_path: Path) -> None:
    alone = learner()
    gradient(alone)
    alone.save(tmp_path / "of_one.npz")
    following = jax.tree.map(np.asarray, gradient(alone))
    port, command = free_port(), [sys.executable, "-m", "tests.devices.worker"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    running = [
        subprocess.Popen(
            [*command, str(i), port, str(part), str(tmp_path)],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(PROCESSES)
    ]
    said = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES, said
    with np.load(tmp_path / "found.npz") as file:
        found = dict(file)
    for rule, form, _ in cases(part):
        expected = jax.tree.leaves(everything.alone(rule)[form])
        together = [found[f"{rule}/{i}"] for i in range(len(expected))]
        assert_tree_close(together, expected, 1e-12)
    expected = jax.tree.leaves(following)
    assert_tree_close([found[f"of_one/{i}"] for i in range(len(expected))], expected, 1e-12)
    alone.restore(tmp_path / "learner.npz")  # of the two processes, on one device
    assert_tree_close(jax.tree.leaves(gradient(alone)), expected, 1e-12)
