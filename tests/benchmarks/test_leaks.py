# SPDX-License-Identifier: Apache-2.0
"""The program for networks with leaks says what is met; no time is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_ratio_is_held_against_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import leaks

    case, targets = leaks.CASES[5]
    assert [t.most for t in targets] == [2.2, 0.5, 1.3, 1.3]
    assert leaks.row(case, targets[0], 2.2).endswith("| 2.2 | 2.2 | met |")
    assert "beside the one moved by hand" in leaks.row(case, targets[1], 0.4)
    assert leaks.row(case, targets[2], 1.31).endswith("| NOT MET |")
    same = leaks.Target("update", leaks.WRITTEN, 1)
    assert leaks.row(case, same, 1.04).endswith("| met |")  # what two runs differ by
