# SPDX-License-Identifier: Apache-2.0
"""Blocks of small steps in stages and step by step, beside BPTT (docs/benchmarks.md).

``.venv/bin/python benchmarks/small_steps.py``: gradients are compared, then the programs are run in
turn in one process; medians of processor time over that of BPTT.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import jax
import numpy as np
from _bench.cases import sequences
from _bench.programs import program_of
from _bench.settings import BPTT, DEFAULT, FRESH, PP, Sizes

CASES = {
    "feed-forward spiking stack": ("forward", Sizes(1000, 1, 64, 256)),
    "GRU": ("gru", Sizes(500, 1, 64, 256)),
}


def error(found: Any, reference: Any) -> float:
    """The largest relative error of an array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def case(title: str, rounds: int) -> None:
    """Measure one case and print its lines."""
    name, sizes = CASES[title]
    data = sequences(name, sizes)

    def compiled(contender: Any) -> Any:
        program = program_of(contender, name, sizes)
        program.compile(data)
        return program

    programs = {"BPTT": compiled(BPTT)}
    for contender in (DEFAULT, FRESH, PP):
        programs[f"{contender.name}, in stages"] = compiled(contender)
        programs[f"{contender.name}, step by step"] = compiled(contender._replace(stages=False))
        pair = [programs[f"{contender.name}, {way}"] for way in ("in stages", "step by step")]
        off = error(*(program.run(data)[0] for program in pair))
        print(f"{title}, {contender.name}: relative difference {off:.1e}")
    times: dict[str, list[float]] = {key: [] for key in programs}
    for _ in range(rounds):
        for key, program in programs.items():
            times[key].append(program.run(data)[1]["cpu"])
    of_bptt = statistics.median(times["BPTT"])
    for key, found in times.items():
        median = statistics.median(found)
        print(f"{title}, {key}: {median * 1e3:.1f} ms, {median / of_bptt:.2f} x BPTT", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    for title in CASES:
        case(title, given.rounds)
