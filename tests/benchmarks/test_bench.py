# SPDX-License-Identifier: Apache-2.0
"""The benchmark program runs and its parts are sound; no time is judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "bench.py", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _bench import race, report

    return race, report


def test_a_short_run_measures_compares_and_draws(tmp_path: Path) -> None:
    found, picture = tmp_path / "run.json", tmp_path / "run.png"
    first = bench("--short", "--no-peer", "--json", str(found), "--figure", str(picture))
    assert first.returncode == 0, first.stderr
    run = json.loads(found.read_text())
    assert list(run["cases"]) == ["gru", "lif"]
    for case in run["cases"].values():
        assert "BPTT" in case["results"] and "per step" in case["results"]
        for one in case["results"].values():
            assert len(one["wall"]) == len(one["cpu"]) == 3 and one["bytes"] > 0
    assert str(Path.home()) not in found.read_text()
    assert picture.read_bytes().startswith(PNG)
    again = bench("--short", "--no-peer", "--case", "gru", "--compare", str(found))
    assert again.returncode == 0, again.stderr
    assert "ratio to BPTT" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--case", "nothing"], "invalid choice: 'nothing'"),
        (["--compare", "missing.json"], "cannot be read"),
        (["--json", "no_such_folder/run.json"], "the folder of"),
    ],
)
def test_bad_options_are_refused(options: list[str], message: str) -> None:
    done = bench(*options)
    assert done.returncode == 2
    assert message in done.stderr


def test_distances_are_relative_to_the_reference(parts: Any) -> None:
    race, _ = parts
    reference = {"a": np.array([3.0, 4.0]), "b": np.ones(2)}
    assert race.distances({"a": np.zeros(2), "b": np.ones(2)}, reference) == [1.0, 0.0]


@pytest.mark.parametrize(("away", "count"), [(1e-6, 0), (0.5, 1), (float("nan"), 1)])
def test_gradients_that_disagree_are_named(parts: Any, away: float, count: int) -> None:
    _, report = parts
    results = {"block auto, trace carried": [0.0], "per step": [away], "peer, per step": [1.0]}
    found = {"results": {name: {"distances": d} for name, d in results.items()}}
    assert len(report.disagreements("gru", found)) == count
