# SPDX-License-Identifier: Apache-2.0
"""What compiling takes for a group of many states (docs/benchmarks.md).

``.venv/bin/python benchmarks/states.py``: analysis and the first gradient, XLA included, in seconds
of the processor, and the memory that they take besides. Each case is a process of its own, whose
weights are given: a library's first random number is no part of it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace

STEPS, BATCH, IN, UNITS = 10, 2, 4, 8
KINDS = ("chain", "sum", "pairs")
COUNTS = (8, 16, 32)
#: Most seconds and MiB of 32 states, but for ``pairs``, whose step has the square of equations.
SECONDS, MEMORY = 3.0, 400
#: The most that 32 states may take, in parts of 8.
RATIO = 4.0


class States(brainstate.nn.Module):
    """``n`` states of a position: each reads the one before it, the sum of all, or each of them."""

    def __init__(self, n: int, kind: str) -> None:
        super().__init__()
        self.n, self.kind = n, kind
        self.weight = brainstate.ParamState(jnp.full((IN, UNITS), 0.1))

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """All states at zero."""
        for i in range(self.n):
            setattr(self, f"h{i}", brainstate.HiddenState(jnp.zeros((batch_size, UNITS))))

    def update(self, x: Any) -> Any:
        """One step."""
        y = braintrace.matmul(x, self.weight.value)
        states = [getattr(self, f"h{i}") for i in range(self.n)]
        old = [state.value for state in states]
        said = [jnp.tanh(h) for h in old]
        if self.kind == "sum":
            heard = [0.01 * sum(said)] * self.n
        elif self.kind == "pairs":
            parts = [0.01 * (1 + k) / self.n for k in range(2 * self.n)]
            heard = [sum(parts[i + j] * s for j, s in enumerate(said)) for i in range(self.n)]
        else:
            heard = [said[i - 1] for i in range(self.n)]
        for state, h, of in zip(states, old, heard, strict=True):
            state.value = 0.9 * h + of + y
        return states[-1].value


def measured(n: int, kind: str) -> tuple[float, float]:
    """Seconds of the processor, and MiB, of compiling a learner and its first gradient."""
    xs = jnp.ones((STEPS, BATCH, IN))
    model = States(n, kind)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(xs))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    learner = braintrace.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    jax.block_until_ready(learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).sum()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return time.process_time() - start, memory / 1024


def main() -> int:
    """Every case in a process of its own; 1 where one takes more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=2, help="a kind and a number of states, in this process")
    case = parser.parse_args().case
    if case:
        print(*measured(int(case[1]), case[0]))
        return 0
    missed = 0
    for kind in KINDS:
        seconds = {}
        for n in COUNTS:
            command = [sys.executable, __file__, "--case", kind, str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[n], memory = map(float, done.stdout.split())
            print(f"{kind} {n:3d} states: {seconds[n]:.2f} s, {memory:.0f} MiB", flush=True)
        most, ratio = seconds[COUNTS[-1]], seconds[COUNTS[-1]] / seconds[COUNTS[0]]
        print(f"{kind}: {COUNTS[-1]} states take {ratio:.1f} x the time of {COUNTS[0]}")
        missed += ratio > RATIO or (kind != "pairs" and (most > SECONDS or memory > MEMORY))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
