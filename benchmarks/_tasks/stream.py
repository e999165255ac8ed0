# SPDX-License-Identifier: Apache-2.0
"""An endless stream: does the memory of the process stay as it is?"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import text

from _tasks import predict

PARTS = 10


@dataclass(frozen=True)
class Mark:
    """How things stand after so many steps.

    ``resident`` bytes are those of the process, ``arrays`` bytes those of all JAX arrays; ``bits``
    per character is the mean since the mark before.
    """

    steps: int
    resident: int
    arrays: int
    bits: float
    seconds: float


def run(rule: str, steps: int, task: predict.Prediction | None = None) -> Iterator[Mark]:
    """Learn ``steps`` characters in each of several streams; a mark after every tenth.

    The texts start again when they end. States and traces are never reset. Steps are rounded up to
    ten times ``update_every``. ``task`` is task E with a smaller GRU, if ``None``.
    """
    task = predict.Prediction(units=64, rate=1e-3) if task is None else task
    brainstate.random.seed(0)
    found = text.load()
    now, after = text.streams(found.train, task.num_streams, task.update_every)
    _, learn = predict.learner(task, found.size, rule, task.rate)
    updates = math.ceil(steps / PARTS / task.update_every)
    start = time.perf_counter()
    for part in range(PARTS):
        which = np.arange(part * updates, (part + 1) * updates) % len(now)
        nats = float(learn(jnp.asarray(now[which]), jnp.asarray(after[which])).mean())
        yield Mark(
            steps=(part + 1) * updates * task.update_every,
            resident=resident(),
            arrays=sum(array.nbytes for array in jax.live_arrays()),
            bits=nats / math.log(2.0),
            seconds=time.perf_counter() - start,
        )


def resident() -> int:
    """Bytes of the process in memory now, or the most so far where only that can be read."""
    table = Path("/proc/self/statm")
    if table.exists():
        import resource

        return int(table.read_text().split()[1]) * resource.getpagesize()
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def line(mark: Mark) -> str:
    """One mark, for people."""
    return (
        f"{mark.steps:>9} steps{mark.resident / 2**20:>10.1f} MiB resident"
        f"{mark.arrays / 2**20:>9.2f} MiB of arrays{mark.bits:>8.2f} bits{mark.seconds:>8.1f} s"
    )
