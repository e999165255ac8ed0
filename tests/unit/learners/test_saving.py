# SPDX-License-Identifier: Apache-2.0
"""The methods of a learner that save and restore it."""

from __future__ import annotations

from pathlib import Path

from tests.unit.learners.bench import Bench, refused


def test_a_restored_learner_goes_on(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "learner.npz"
    bench.learner.save(file)
    bench.learner.etrace_evolve(bench.xs)
    bench.model.w.value = bench.model.w.value + 1.0
    traces = bench.learner.read_traces()
    bench.learner.restore(file, only="parameters")
    assert bench.learner.read_traces() == traces
    bench.learner.restore(file)
    with refused(bench, ValueError, r"only must be 'parameters' or None"):
        bench.learner.restore(file, only="traces")  # type: ignore[arg-type]


def test_a_damaged_file_leaves_all_as_it_was(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "learner.npz"
    file.write_bytes(b"nothing")
    with refused(bench, ValueError, r"damaged|none that was saved"):
        bench.learner.restore(file)
