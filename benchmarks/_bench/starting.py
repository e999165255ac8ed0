# SPDX-License-Identifier: Apache-2.0
"""What importing takes, in processes of their own that run in turn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .processes import FOLDER, variables

OPERATION = """\
import brainstate
import jax.numpy as jnp
x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
"""
#: What is run, and by whom. The first product of a process starts JAX's backend and is compiled,
#: with or without this library.
PROGRAMS = {
    "python": (False, "pass"),
    "import braintrace": (False, "import braintrace"),
    "import brainstate": (False, "import brainstate"),
    "first product": (False, f"{OPERATION}jnp.matmul(x, w).block_until_ready()"),
    "first operation": (
        False,
        f"{OPERATION}import braintrace\nbraintrace.matmul(x, w).block_until_ready()",
    ),
    "peer: import braintrace": (True, "import braintrace"),
}


def measure(pythons: Mapping[bool, Path], rounds: int) -> dict[str, Any]:
    """Seconds of every program, a list each; of several rounds, the first is left out."""
    chosen = {name: code for name, (peer, code) in PROGRAMS.items() if peer in pythons}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, code in chosen.items():
            seconds[name].append(run(pythons[PROGRAMS[name][0]], code))
    return {name: found[1:] or found for name, found in seconds.items()}


def run(python: Path, code: str) -> float:
    """Seconds of a process."""
    start = time.perf_counter()
    subprocess.run([python, "-c", code], check=True, cwd=FOLDER, env=variables(python))
    return time.perf_counter() - start
