# SPDX-License-Identifier: Apache-2.0
"""The main example: its command line, a short run of everything, and its helpers."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the example the way the example does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def parse(helper, tmp_path):
    """Parse a command line; the figure goes to a temporary folder unless the line names one."""

    def parse_line(*arguments: str):
        figure = ("--figure", str(tmp_path / "figure.png"))
        parse = helper("_digits.options").parse
        return parse([*figure, *arguments], "description", num_images=1347)

    return parse_line


def test_defaults_are_the_settings_of_the_comparison(helper):
    options = helper("_digits.options").parse([], "description", num_images=1347)
    assert (options.task, options.epochs, options.batch_size) == ("both", 40, 64)
    assert (options.algorithm, options.block_size, options.bptt) == ("d_rtrl", "auto", True)
    assert options.figure == Path("digits.png")
    assert options.check is None


def test_options_arrive_as_given(parse):
    options = parse("--task", "gru", "--block-size", "4", "--no-bptt", "--check", "0.94")
    assert (options.task, options.block_size) == ("gru", 4)
    assert (options.bptt, options.check) == (False, 0.94)


BAD_OPTIONS = [
    (["--task", "mlp"], "--task", "'mlp'"),
    (["--epochs", "0"], "--epochs", "at least 1, got 0"),
    (["--epochs", "-3"], "--epochs", "at least 1, got -3"),
    (["--epochs", "2.5"], "--epochs", "whole number, got '2.5'"),
    (["--batch-size", "0"], "--batch-size", "at least 1, got 0"),
    (["--batch-size", "1348"], "--batch-size", "at most 1347"),
    (["--seed", "-1"], "--seed", "between 0 and"),
    (["--seed", "4294967296"], "--seed", "between 0 and"),
    (["--algorithm", "backprop"], "--algorithm", "'backprop'"),
    (["--block-size", "0"], "--block-size", "got 0 (or give 'auto')"),
    (["--block-size", "all"], "--block-size", "got 'all' (or give 'auto')"),
    (["--figure", "no/such/folder/x.png"], "--figure", "folder of 'no/such/folder/x.png'"),
    (["--figure", "x.txt"], "--figure", "must end in one of .png"),
    (["--check", "1.5"], "--check", "between 0 and 1, got 1.5"),
    (["--check", "nan"], "--check", "between 0 and 1, got nan"),
    (["--check", "good"], "--check", "fraction, got 'good'"),
    (["--epoch", "3"], "--epoch", "unrecognized"),
]


@pytest.mark.parametrize(
    ("arguments", "option", "reason"), BAD_OPTIONS, ids=[" ".join(case[0]) for case in BAD_OPTIONS]
)
def test_bad_options_are_refused_with_the_reason(parse, capsys, arguments, option, reason):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert option in message
    assert reason in message


def test_a_folder_is_no_figure(parse, tmp_path, capsys):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(SystemExit):
        parse("--figure", str(folder))
    assert "is a folder" in capsys.readouterr().err


def run_digits(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "digits.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ
        | {"PYTHONWARNINGS": "error::RuntimeWarning", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )


def test_short_run_trains_everything_and_saves_the_figure(tmp_path):
    figure = tmp_path / "digits.png"
    done = run_digits("--epochs", "2", "--figure", str(figure))
    assert done.returncode == 0, done.stderr
    results = [line.split() for line in done.stdout.splitlines() if line.endswith(" s")]
    assert [words[-4] for words in results] == ["D-RTRL", "BPTT", "D-RTRL", "BPTT"]
    assert min(float(words[-3]) for words in results) > 0.3  # guessing reads one in ten
    assert figure.read_bytes().startswith(PNG)
    assert "lif  D-RTRL 2/2" in done.stderr


def test_check_fails_the_run_when_the_accuracy_is_missed(tmp_path):
    figure = tmp_path / "digits.png"
    arguments = ["--task", "gru", "--epochs", "1", "--no-bptt", "--block-size", "3"]
    done = run_digits(*arguments, "--check", "1.0", "--figure", str(figure))
    assert done.returncode == 1, done.stderr
    assert "--check: GRU, row by row, D-RTRL: held-out accuracy" in done.stderr
    assert "BPTT" not in done.stdout
    assert figure.exists()


def test_split_is_stratified_and_disjoint(helper):
    digits = helper("_shared.digits").load()
    assert len(digits.train_labels) == 1347
    assert len(digits.test_labels) == 450
    assert digits.train_images.min() == 0.0
    assert digits.train_images.max() == 1.0
    whole = np.bincount(digits.train_labels) + np.bincount(digits.test_labels)
    assert np.all(np.abs(np.bincount(digits.test_labels) - whole / 4) < 1)


def test_epochs_visit_every_image_at_most_once(helper):
    import jax

    data = helper("_shared.digits")
    (first, first_keys), (second, _) = data.epochs(jax.random.key(0), 2, 64)
    assert first.shape == (21, 64)
    assert first_keys.shape == (21,)
    assert len(np.unique(first)) == first.size
    assert not np.array_equal(first, second)


def test_encodings(helper):
    import jax

    data = helper("_shared.digits")
    images = data.load().test_images[:5]
    rows = data.rows(jax.random.key(0), images)
    assert rows.shape == (8, 5, 8)
    np.testing.assert_array_equal(rows[2, 3], images[3].reshape(8, 8)[2])
    spikes = np.asarray(data.poisson_spikes(jax.random.key(0), images, num_steps=4000))
    assert set(np.unique(spikes)) == {0.0, 1.0}
    np.testing.assert_allclose(spikes.mean(0), 0.5 * images, atol=0.05)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_redraws_one_line_in_a_terminal(helper):
    stream = Terminal()
    with helper("_shared.progress").Progress("task", 2, stream) as progress:
        progress.advance("loss 1")
        progress.advance("loss 0")
    assert stream.getvalue().count("\n") == 1
    assert "2/2  loss 0" in stream.getvalue()


def test_progress_writes_few_plain_lines_elsewhere(helper):
    stream = io.StringIO()
    with helper("_shared.progress").Progress("task", 40, stream) as progress:
        for epoch in range(40):
            progress.advance(f"loss {epoch}")
    assert "\r" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 5
    assert "40/40  loss 39" in stream.getvalue().splitlines()[-1]
