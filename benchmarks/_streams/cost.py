# SPDX-License-Identifier: Apache-2.0
"""What a ``learn_one`` costs beside the compiled step alone, and what a process holds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from _tasks.stream import resident

from braintrace_river import RecurrentRegressor

FEATURES = {"a": 1.0, "b": 0.5, "c": -0.3, "d": 0.1}
ROUNDS, CALLS = 15, 1000


def started() -> Any:
    """A regressor of 64 gated units and four features that has learned one sample."""
    model = RecurrentRegressor(features=len(FEATURES), seed=0)
    model.learn_one(FEATURES, 1.0)
    return model


def rate() -> dict[str, float]:
    """Microseconds of a call: medians of interleaved rounds."""
    model = started()
    programs, _ = model._running()
    row = model._row(programs, FEATURES)
    row[-3:] = 1.0, 1.0, 1
    held = [programs.first(0)]

    def step() -> None:
        held[0] = programs.learn(held[0], row)

    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "compiled step": (step, lambda: held[0]),
        "learn_one": (lambda: model.learn_one(FEATURES, 1.0), lambda: model._values),
        "predict_one": (lambda: model.predict_one(FEATURES), lambda: None),
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, (call, result) in ways.items():
            cpu, clock = time.process_time(), time.perf_counter()
            for _ in range(CALLS):
                call()
            jax.block_until_ready(result())
            spent[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    found = {}
    for name, rounds in spent.items():
        cpu, clock = (statistics.median(r[k] for r in rounds[1:]) / CALLS * 1e6 for k in (0, 1))
        found[name] = clock
        print(
            f"{name:<16}{clock:8.1f} us, processor time {cpu:8.1f} us, {1e6 / clock:8.0f} a second"
        )
    print(f"learn_one / compiled step: {found['learn_one'] / found['compiled step']:.3f}")
    return found


def memory(steps: int) -> list[tuple[int, int, int]]:
    """Steps, resident bytes and bytes of arrays after each tenth of a stream of new samples."""
    model, marks = started(), []
    start = time.perf_counter()
    for part in range(1, 11):
        for step in range(steps // 10):
            x = {name: value * (step % 7) for name, value in FEATURES.items()}
            model.predict_one(x)
            model.learn_one(x, float(step % 5))
        gc.collect()
        arrays = sum(array.nbytes for array in jax.live_arrays())
        marks.append((part * (steps // 10), resident(), arrays))
        print(f"{marks[-1][0]:>9} steps{marks[-1][1] / 2**20:>9.1f} MiB resident"
              f"{arrays / 2**10:>9.1f} KiB of arrays{time.perf_counter() - start:>9.1f} s",
              flush=True)  # fmt: skip
    return marks
