# SPDX-License-Identifier: Apache-2.0
"""Small runs of ``benchmarks/streams.py``: series, models, the error and the cost of a call."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brainstate
import jax
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the program, in float32."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ["streams", "_streams.series", "_streams.models", "_streams.cost"]
    with jax.enable_x64(False), brainstate.environ.context(precision=32):
        modules = [importlib.import_module(name) for name in names]
        yield SimpleNamespace(**{m.__name__.rpartition(".")[2]: m for m in modules})


def test_series_say_what_comes_next(parts: Any) -> None:
    water, shuttle = parts.series.water(), parts.series.shuttle()
    assert water.shape == (1266, 3) and shuttle.shape == (49_097, 10)
    np.testing.assert_allclose(water[:-1, 0] + water[1:, 1], water[1:, 0])
    np.testing.assert_array_equal(water[:-1, 2], water[1:, 1])
    (x, y), *_ = parts.series.samples("shuttle", shuttle[:2])
    assert x["x0"] == 50 and len(x) == 9 and y == 1


def test_the_error_is_that_of_predictions_before_learning(parts: Any) -> None:
    from river import metrics

    data = [({"x0": float(k)}, float(k) + 2) for k in range(120)]
    model = parts.models.Last(change=False)
    assert parts.streams.prequential(model, data, metrics.MAE()) == 2.0


def test_a_network_learns_a_wave_that_a_line_cannot(parts: Any) -> None:
    """Memory says whether the wave rises."""
    from river import metrics

    wave = np.sin(0.4 * np.arange(1200))
    data = np.stack([wave[:-1], wave[1:]], 1)
    found = parts.models.available("laser")
    errors = {
        name: parts.streams.prequential(
            found[name][0](0), parts.series.samples("laser", data), metrics.MAE()
        )
        for name in ("linear", "GRU, D-RTRL")
    }
    assert errors["GRU, D-RTRL"] < 0.6 * errors["linear"]


def test_the_program_prints_and_keeps_the_figures(parts: Any, tmp_path: Path, capsys: Any) -> None:
    kept, found = tmp_path / "series.npz", tmp_path / "found.json"
    assert parts.streams.main(["--series", "water", "--write", str(kept)]) == 0
    options = ["--series", "water", "laser", "--read", str(kept), "--steps", "150"]
    with pytest.raises(KeyError):
        parts.streams.main(options)
    options.remove("laser")
    models = ["--model", "last value", "linear", "deep"]
    assert parts.streams.main([*options, *models, "--json", str(found)]) == 0
    said = capsys.readouterr()
    assert "left out: deep on water" in said.err and "last value" in said.out
    assert [one["model"] for one in json.loads(found.read_text())] == ["last value", "linear"]


def test_a_call_costs_little_more_than_the_compiled_step(parts: Any, monkeypatch: Any) -> None:
    """1.01 to 1.05 where nothing else runs; the bound is for machines that are shared."""
    monkeypatch.setattr(parts.cost, "ROUNDS", 7)
    monkeypatch.setattr(parts.cost, "CALLS", 200)
    found = parts.cost.rate()
    assert found["learn_one"] < 1.5 * found["compiled step"]
    marks = parts.cost.memory(2000)
    assert marks[-1][2] == marks[1][2]
