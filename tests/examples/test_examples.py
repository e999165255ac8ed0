# SPDX-License-Identifier: Apache-2.0
"""Every example runs in its quick form, prints a result, saves a picture and is in the gallery."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for extra in ("matplotlib", "optax", "sklearn"):
    if find_spec(extra) is None:
        pytest.skip("the examples need braintrace-core[examples]", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GALLERY = ROOT / "docs" / "gallery"
#: Examples with tests of their own.
ELSEWHERE = {"digits", "neurons"}
#: What each prints, besides where its picture is.
PRINTED = {
    "characters": r"held-out bits per character \d\.\d\d \(order-2 n-gram: 2\.\d\d\)",
    "conv_motion": r"right on 32 new films: [01]\.\d{3} after a frame, [01]\.\d{3} after 16",
    "devices": r"1 device, mean loss \d\.\d{6}, held-out accuracy 0\.[4-9]",
    "dense_cells": r"minGRU +[01]\.\d{3} of the bits are right",
    "digit_pixels": r"differ by \d\.\de-0[678]\nheld-out accuracy 0\.[3-9]",
    "digit_rows": r"held-out accuracy 0\.[4-9]",
    "einsum_branches": r"four paces: 0\.\d{3} of the signs on new sequences are wrong",
    "embedding_words": r"trace \(16, 512, 48\) of a table \(1001, 48\); words forgotten: 0",
    "elemwise_time_constants": r"time constants: median error \d+\.\d%, largest \d+\.\d%\ngains",
    "lora_adapter": r"\nby columns with adapters 0\.\d{3} \(1632 weights beside 14016 constant",
    "match_to_sample": r"accuracy on 64 new trials [01]\.\d{3} after 4 batches",
    "poisson_digits": r"held-out accuracy 0\.[6-9]",
    "sparse_forecast": r"2048 recurrent weights instead of 65536\nerror in the last 100 steps",
    "speakers": r"held-out accuracy [01]\.\d{3} of 27 utterances",
}
#: Runs all of them in one process: importing JAX takes longer than the shortest example.
PROGRAM = """
import contextlib, importlib, io, json, os, sys, traceback
sys.path[:0] = [sys.argv[1], os.getcwd()]
from _shared import vowels

def call(main, *arguments):
    output, errors = io.StringIO(), io.StringIO()
    status = 1
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(list(arguments))
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
    return {"status": status, "output": output.getvalue(), "errors": errors.getvalue()}

found = {}
for name in sys.argv[2:]:
    main = importlib.import_module(name).main
    found[name] = call(main, "--quick", "--figure", f"{name}.svg")
    found[f"{name} --help"] = call(main, "--help")
vowels.find_spec = lambda package: None
found["without data"] = call(importlib.import_module("speakers").main, "--quick")
with open("runs.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all examples were run in their quick form."""
    folder = tmp_path_factory.mktemp("examples")
    write_vowels(folder / "aeon")
    # as users run them, but compiled as little as possible
    variables = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    variables["PYTHONWARNINGS"] = "error"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, EXAMPLES, *PRINTED],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return folder


def write_vowels(package: Path) -> None:
    """Something in the form of JapaneseVowels, where the package aeon has it."""
    rng = np.random.default_rng(0)
    data = package / "datasets" / "data" / "JapaneseVowels"
    data.mkdir(parents=True)
    (package / "__init__.py").touch()
    for part, count in (("TRAIN", 90), ("TEST", 27)):
        lines = ["@problemName JapaneseVowels", "@data"]
        for i in range(count):
            values = rng.normal(i % 9, 1.0, (12, rng.integers(7, 30)))
            channels = (",".join(f"{v:.4f}" for v in channel) for channel in values)
            lines.append(":".join([*channels, str(i % 9 + 1)]))
        (data / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Any]:
    """What every run returned and printed."""
    return json.loads((folder / "runs.json").read_text())


def test_every_example_is_tested() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*PRINTED, *ELSEWHERE}


@pytest.mark.parametrize("name", PRINTED)
def test_the_example_runs(name: str, folder: Path, runs: dict[str, Any]) -> None:
    run = runs[name]
    assert run["status"] == 0, run["errors"]
    assert re.search(PRINTED[name], run["output"]), run["output"]
    assert run["output"].endswith(f"figure: {name}.svg\n")
    assert re.search(r" +\d+/\d+ +\w.* \d+\.\d s\n", run["errors"])  # its progress
    assert "<svg" in (folder / f"{name}.svg").read_text(encoding="utf-8")
    shown = runs[f"{name} --help"]
    assert shown["status"] == 0 and "--quick" in shown["output"]


def test_without_its_data_the_example_says_what_to_install(runs: dict[str, Any]) -> None:
    run = runs["without data"]
    assert run["status"] == 1 and "pip install --no-deps aeon" in run["errors"]


def test_the_gallery_shows_every_example_by_a_small_picture() -> None:
    page = GALLERY.with_suffix(".md").read_text(encoding="utf-8")
    names = {*PRINTED, *ELSEWHERE}
    assert {*re.findall(r"^\$ python examples/(\w+)\.py", page, re.MULTILINE)} == names
    shown = re.findall(r"\]\(gallery/([\w.]+)\)", page)
    assert {Path(file).stem for file in shown} == names
    assert {*shown} == {file.name for file in GALLERY.iterdir()}
    for file in GALLERY.iterdir():
        assert file.stat().st_size < 60_000
