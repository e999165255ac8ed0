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

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the program, in float32."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    own = "archive catalogue digits evidence predict rules spoken stream".split()
    shared = "matching networks text vowels".split()
    names = [f"_tasks.{name}" for name in own] + [f"_shared.{name}" for name in shared]
    with jax.enable_x64(False), brainstate.environ.context(precision=32):
        modules = [importlib.import_module(name) for name in names]
        yield SimpleNamespace(**dict(zip([*own, *shared], modules, strict=True)))


#: Passes, and the accuracy to reach, 0.04 to 0.1 below what was measured. A network that was not
#: trained is right one time in ten (nine in D). Credit for the current step alone does nearly as
#: well as a trace in these four, so they show that rules learn; that traces help is shown below.
GATES = {"A": (3, 0.85), "B": (8, 0.82), "C": (2, 0.70), "D": (10, 0.90)}


@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop"])
@pytest.mark.parametrize("name", GATES)
def test_a_short_training_reaches_its_accuracy(parts: Any, name: str, rule: str) -> None:
    if name == "D" and parts.vowels.folder() is None:
        pytest.skip("the data files of the package aeon are not installed")
    work = parts.catalogue.TASKS[name].work
    epochs, least = GATES[name]
    found = work.train(rule, 0, epochs)
    assert found >= least
    if (name, rule) == ("C", "d_rtrl"):  # exact: the same training up to round-off
        assert found == pytest.approx(work.train("bptt", 0, epochs), abs=0.02)


def test_what_was_seen_before_a_silence_needs_a_trace(parts: Any) -> None:
    """Rows and eight empty ones, 16 units, 10 passes: 0.65 with D-RTRL, 0.55 with pp_prop; 0.42
    with credit for the current step alone."""

    def silence_after(key: jax.Array, images: jax.Array) -> jax.Array:
        rows = importlib.import_module("_shared.digits").rows(key, images)
        return jnp.concatenate([rows, jnp.zeros_like(rows)])

    task = replace(
        parts.catalogue.TASKS["B"].work,
        build=partial(parts.networks.gated, 8, 16, 10, -2.0),
        load=parts.digits.split(parts.digits.last_step(16)),
        encode=silence_after,
        rate=1e-2,
        decay=0.97,
    )
    without = task.train("no_trace", 0, 10)
    assert task.train("d_rtrl", 0, 10) >= without + 0.1
    assert task.train("pp_prop", 0, 10) >= without + 0.05


def test_memory_stays_as_it_is_along_a_stream(parts: Any) -> None:
    task = parts.predict.Prediction(units=16, num_streams=4)
    gc.collect()
    marks = list(parts.stream.run("d_rtrl", 10_000, task))
    assert marks[-1].steps >= 10_000
    assert marks[-1].arrays <= marks[0].arrays
    assert marks[-1].resident - marks[1].resident < 8 * 2**20
    assert marks[-1].bits < marks[0].bits  # it learns


def test_trials_are_what_they_are_said_to_be(parts: Any) -> None:
    trials = jax.jit(partial(parts.matching.trials, count=100))
    spikes, match = map(np.asarray, trials(jax.random.key(0)))
    assert spikes.shape == (201, 100, 100)
    rates = spikes.mean((1, 2))
    assert rates[1:51].mean() > 5 * rates[51:151].mean()
    assert 0.3 < match.mean() < 0.7
    sample, test = spikes[1:51].sum(0), spikes[151:].sum(0)
    same = (sample / 40 - test / 40) ** 2  # a stimulus that comes again excites the same inputs
    assert same.mean(1)[match == 1].max() < same.mean(1)[match == 0].min()


FILES = {"sets_{}.ts": "# a set\n@data\n{}", "sets_{}.txt": "{}"}
WAVES = np.sin(np.arange(12) * np.linspace(0.3, 1.5, 8)[:, None])


@pytest.mark.parametrize("files", FILES)
def test_long_series_are_learned_by_d_rtrl_as_by_bptt(
    parts: Any, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small package with slow and fast waves: the numbers of BPTT, in a memory without T."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / f"waves_{Path(files).suffix[1:]}"
    archive = parts.archive.Archive(folder.name, files, 12, 2)
    assert "--no-deps waves_" in archive.missing()
    folder.mkdir()
    for part in ("TRAIN", "TEST"):
        rows = [(",".join(map(str, wave)), i // 4) for i, wave in enumerate(WAVES)]
        if files.endswith(".ts"):
            text = "\n".join(f"{values}:{label}" for values, label in rows)
        else:
            text = "\n".join(f"{label + 1} {values.replace(',', ' ')}" for values, label in rows)
        (folder / files.format(part)).write_text(FILES[files].format(text))
    importlib.invalidate_caches()
    assert archive.missing() is None
    train = archive.split().train
    np.testing.assert_allclose(train.inputs.std(1), 1.0, rtol=1e-5)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    if files.endswith(".ts"):
        return
    task = replace(
        parts.catalogue.TASKS["H2"].work,
        build=parts.archive.filters(archive, fastest=0.5, phase=3.14, units=4),
        load=archive.split,
        batch_size=4,
    )
    found = {rule: task.train_together(rule, [0, 1], 80) for rule in ("d_rtrl", "bptt")}
    assert found["d_rtrl"] == found["bptt"]
    assert min(found["bptt"]) > 0.7
    assert task.memory("d_rtrl", 4) <= 1.1 * task.memory("d_rtrl")
    assert task.memory("bptt", 4) > 2 * task.memory("bptt")


def test_most_cues_are_on_the_side_of_the_answer(parts: Any) -> None:
    spikes, answers = map(np.asarray, parts.evidence.trials(jax.random.key(0), count=100))
    assert spikes.shape == (225, 100, 40)
    left, right, recall, noise = np.split(spikes, 4, axis=-1)
    counts = (right.sum((0, 2)), left.sum((0, 2)))
    assert ((counts[0] > counts[1]) == answers).mean() > 0.95
    assert 0.35 < answers.mean() < 0.65
    assert not spikes[10:15, :, :30].any() and not spikes[105:210, :, :30].any()
    assert not recall[:210].any() and 0.37 < recall[210:].mean() < 0.43
    assert 0.09 < noise.mean() < 0.11
    small = replace(
        parts.catalogue.TASKS["I"].work, units=4, batch_size=4, epochs=1, round=1, tests=1
    )
    assert 0.0 <= small.train("e_prop", 0) <= 1.0


def test_no_trace_with_rmsprop_takes_steps_of_one_size(parts: Any) -> None:
    for rule in ("no_trace_rms", "no_trace"):
        optimiser = parts.rules.optimiser(rule, 0.01)
        state = optimiser.init(jnp.zeros(2))
        first, state = optimiser.update(jnp.array([0.5, 1e-3]), state)
        np.testing.assert_allclose(first, -0.01, rtol=1e-3)
        again, _ = optimiser.update(jnp.zeros(2), state)  # RMSprop has no momentum
        assert bool((again == 0).all()) == (rule == "no_trace_rms")


def test_spoken_digits_are_held_out_by_voice(parts: Any) -> None:
    assert parts.spoken.FILE.stat().st_size < 2 * 2**20
    split = parts.spoken.split()
    for part, words in ((split.train, 640), (split.test, 320)):
        assert part.inputs.shape == (words, 112, 70)
        assert np.bincount(part.labels).tolist() == [words // 20] * 20
        assert 0.04 < part.inputs.mean() < 0.08


def test_streams_follow_the_text(parts: Any) -> None:
    now, after = parts.text.streams(np.arange(100), count=3, update_every=4)
    assert now.shape == after.shape == (8, 4, 3)
    assert (after == now + 1).all()
    assert (now[0, :, 1] == np.arange(32, 36)).all()


def test_the_program_trains_and_keeps_the_figures(tmp_path: Path) -> None:
    found = tmp_path / "runs.json"
    command = [sys.executable, BENCHMARKS / "tasks.py", "--task", "B", "--rule", "bptt"]
    command += ["--seeds", "1", "--epochs", "0", "--json", found]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "0.962 0.978 0.953" not in done.stdout and "0.978 0.976 0.980" in done.stdout
    assert "logistic regression" in done.stdout
    (run,) = json.loads(found.read_text())
    assert (run["task"], run["rule"], run["epochs"]) == ("B", "bptt", 0)
    assert run["value"] < 0.3  # not trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "H"], "invalid choice: 'H'"),
        (["--rule", "rtrl"], "invalid choice: 'rtrl'"),
        (["--seeds", "0"], "at least 1, got '0'"),
        (["--epochs", "many"], "at least 0, got 'many'"),
        (["--json", "no_such_folder/runs.json"], "the folder of"),
    ],
)
def test_bad_options_are_refused(
    parts: Any, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("tasks").options(options)
    assert message in capsys.readouterr().err
