# SPDX-License-Identifier: Apache-2.0
"""The benchmark program runs and its parts are sound; no time is judged."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "bench.py", *options]
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(command, env=quick, capture_output=True, text=True, timeout=300)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package of the program, with those of its modules that the tests use."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _bench
    from _bench import counting, figures, race, report, roofline, settings  # noqa: F401

    return _bench


@pytest.mark.skipif(
    os.environ.get("BRAINTRACE_CELLS") == "third", reason="run with the other Python"
)
def test_a_short_run_goes_through_every_part(tmp_path: Path, parts: ModuleType) -> None:
    found, picture, page = tmp_path / "run.json", tmp_path / "run.png", tmp_path / "page.md"
    page.write_text("Above.\n<!-- measured -->\nold\n<!-- end of measured -->\nBelow.\n")
    paths = ["--json", str(found), "--figure", str(picture), "--markdown", str(page)]
    done = bench("--short", *paths)
    assert done.returncode == 0, done.stderr
    run = json.loads(found.read_text())
    assert list(run["cases"]) == ["gru", "conv"]
    for case in run["cases"].values():
        assert {"BPTT", "D-RTRL", "online, etrace_update"} <= case["results"].keys()
        for name, one in case["results"].items():
            assert len(one["wall"]) == len(one["cpu"]) == 2 and one["bytes"] > 0
            assert case["limits"]["seconds"][name] > 0
    assert run["compile"]["again"] == {"etrace_grad": 0, "learner(x)": 0}
    assert run["compile"]["cached"]["first"] > 0 == run["compile"]["cached"]["second"]
    assert run["import"]["first operation"] and run["memory"]["growth"]["gru"]
    assert str(Path.home()) not in found.read_text()
    assert picture.read_bytes().startswith(PNG)
    text = page.read_text()
    assert text.startswith("Above.") and text.endswith("Below.\n") and "| D-RTRL | " in text
    assert "gru: D-RTRL / BPTT" in parts.report.comparison(run, run)
    assert all(value is None for _, value in parts.figures.verdicts(run))


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


def test_a_page_without_a_place_for_the_tables_is_left_alone(
    tmp_path: Path, parts: ModuleType
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Mine.")
    with pytest.raises(RuntimeError, match="has no lines <!-- measured -->"):
        parts.report.write_markdown({"short": True, "machine": {}}, page)
    assert page.read_text() == "Mine."


def test_distances_are_relative_to_the_reference(parts: ModuleType) -> None:
    reference = {"a": np.array([3.0, 4.0]), "b": np.ones(2), "c": np.ones(1)}
    found = {"a": np.array([0.0, 4.0]), "b": np.ones(2), "c": np.zeros(1)}
    assert parts.race.distances(found, reference) == [0.6, 0.0, None]


@pytest.mark.parametrize("away", [1e-6, 0.5, float("nan"), None])
@pytest.mark.parametrize("peer", [False, True])
def test_results_that_disagree_are_named(parts: ModuleType, away: float | None, peer: bool) -> None:
    settings = parts.settings
    one = settings.PEER_SEQUENCE if peer else settings.STEPS
    found = {"results": {one.name: {"distances": [1e-6, away]}}}
    agrees = away == 1e-6 or (away is None and peer)  # the peer leaves parameters out
    assert parts.report.disagreements("gru", found, [one]) == (
        [] if agrees else [f"gru: the results of {one.name!r} and 'D-RTRL' differ"]
    )
    assert not parts.report.disagreements("lstm", found, [settings.PEER_SEQUENCE])


def test_the_peer_is_the_newest_of_each_python(parts: ModuleType) -> None:
    from _bench.peer import requirement

    versions = {minor: requirement((3, minor)).rpartition("=")[2] for minor in (11, 12, 13, 14)}
    assert versions == {11: "0.2.6", 12: "0.2.8", 13: "0.2.8", 14: "0.2.8"}
    text = parts.report.markdown({"short": True, "machine": {}, "peer": requirement((3, 13))})
    assert "peer braintrace==0.2.8" in text


@pytest.mark.parametrize(("given", "counterpart"), [(4, "PP_TRACED"), (6, "PP")])
def test_the_peer_is_held_against_what_computes_as_much(
    parts: ModuleType, given: int, counterpart: str
) -> None:
    settings = parts.settings

    def found(count: int, seconds: float) -> dict[str, object]:
        distances = [1e-6] * count + [None] * (8 - count)
        return {"work": "gradient", "wall": [seconds], "distances": distances}

    results = {
        settings.BPTT.name: found(8, 1.0),
        settings.PP.name: found(8, 0.5),
        settings.PP_TRACED.name: found(4, 0.25),
        settings.PEER_PP.name: found(given, 1.0),
    }
    figures = parts.figures.of_case({"results": results, "limits": {"pass_s": 1.0}})
    ours = getattr(settings, counterpart).name
    assert figures["peer pp_prop / ours"] == 1.0 / results[ours]["wall"][0]  # type: ignore[index]


def test_products_are_counted_as_matrix_products_and_only_where_they_are_used(
    parts: ModuleType,
) -> None:
    def products(x, w, image, kernel):  # type: ignore[no-untyped-def]
        jnp.dot(x, w)  # nothing reads this one
        shared = jnp.einsum("bij,bjk->bik", image, image)
        return x @ w, shared, parts.counting.jax.lax.conv(image[None], kernel, (1, 1), "SAME")

    shapes = ((2, 3), (3, 5), (7, 4, 4), (6, 7, 3, 3))
    found = [*parts.counting.products_of(products, *map(jnp.ones, shapes))]
    product = parts.counting.Product
    assert len(found) == 3
    assert {*found} == {product(2, 3, 5), product(4, 4, 4, 7), product(16, 63, 6)}


def test_counts_of_a_layer_are_those_on_paper(parts: ModuleType) -> None:
    sizes = parts.settings.Sizes(steps=3, batch=2, inputs=5, units=4)
    _, batch, inputs, units = sizes
    found = parts.counting.count("lif", sizes)
    readout, recurrent = 2 * batch * units * 10, 2 * batch * units * units
    assert found.forward == found.weights == 2 * batch * inputs * units + recurrent + readout
    assert (found.signals, found.history) == (readout, recurrent)


def test_the_limit_of_a_rule_is_its_products_and_its_passes(parts: ModuleType) -> None:
    settings, counts = parts.settings, parts.counting.Counts(10, 10, 4, 6, None)
    rates = {"step_rate": 1.0, "batched_rate": 2.0, "pass_s": 100.0}

    def needed(one):  # type: ignore[no-untyped-def]
        return parts.roofline.needed(one, counts, 8, rates, 20)

    assert needed(settings.BPTT) == 20 * (20 + 5)
    assert needed(settings.FRESH) == needed(settings.PP) == 20 * (14 + 5)
    assert needed(settings.DEFAULT) == 20 * (14 + 7) + 100
    assert needed(settings.UPDATE) == 20 * 14 + 20 * 100


def test_the_picture_of_the_page_shows_its_table(parts: ModuleType) -> None:
    """Where it does not: ``python3 benchmarks/_bench/beside.py`` draws it anew."""
    beside = import_module("_bench.beside")
    cases = beside.ratios(beside.PAGE.read_text(encoding="utf-8"))
    assert len(cases) > 8
    drawn = beside.PICTURE.read_text(encoding="utf-8")
    shown = [html.unescape(text) for text in re.findall(r">([^<>]+)</text>", drawn)]
    numbers = [f"{ratio:g}" for found in cases.values() for ratio in found.values()]
    assert sorted(n for n in shown if re.fullmatch(r"[\d.]+", n)) == sorted(
        [*numbers, "1", "10", "100"]
    )
    assert {*cases, *beside.BARS.values()} <= {*shown}
