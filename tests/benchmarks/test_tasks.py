# SPDX-License-Identifier: Apache-2.0
"""Small trainings of ``benchmarks/tasks.py`` learn, and a stream takes no more memory with time."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.filterwarnings("ignore:.*relation_excluded_non_temporal")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the program, in float32."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = "catalogue digits matching networks predict problem stream text vowels".split()
    with jax.enable_x64(False):
        yield SimpleNamespace(**{n: importlib.import_module(f"_tasks.{n}") for n in names})


#: Passes, and the accuracy to reach. A network that was not trained is right once in ten times.
GATES = {"A": (3, 0.0), "B": (10, 0.0), "C": (2, 0.0), "D": (15, 0.0)}


@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop"])
@pytest.mark.parametrize("name", GATES)
def test_a_short_training_reaches_its_accuracy(parts: Any, name: str, rule: str) -> None:
    if name == "D" and parts.vowels.folder() is None:
        pytest.skip("the data files of the package aeon are not installed")
    epochs, least = GATES[name]
    assert parts.catalogue.TASKS[name].work.train(rule, 0, epochs) >= least


def test_memory_stays_as_it_is_along_a_stream(parts: Any) -> None:
    task = parts.predict.Prediction(units=16, num_streams=4)
    gc.collect()
    marks = list(parts.stream.run("d_rtrl", 10_000, task))
    assert marks[-1].steps >= 10_000
    assert marks[-1].arrays <= marks[0].arrays
    assert marks[-1].resident - marks[1].resident < 8 * 2**20
    assert marks[-1].bits < marks[0].bits  # it learns
