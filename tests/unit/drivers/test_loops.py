# SPDX-License-Identifier: Apache-2.0
"""Loops in parts, with a record, with a bar."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from braintrace.drivers.loops import Progress, in_parts, marked_scan
from tests.unit.drivers.net import (
    made,
    summed,
)


@pytest.mark.parametrize("driver", ["etrace_grad", "etrace_update", "etrace_evolve"])
def test_progress_reaches_its_end(driver: str, data: Any, capfd: Any) -> None:
    learner = made()
    options: dict[str, Any] = {"etrace_update": {"optimizer": optax.sgd(0.1)}}.get(driver, {})
    if driver == "etrace_grad":
        options = {"block_size": 1}
    getattr(learner, driver)(*data, step_fn=summed(learner), progress=True, **options)
    jax.effects_barrier()
    assert " 7/7" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("size", "least", "in_scan"), [(3, 1, 2), (3, 2, 2), (3, 3, 0), (7, 1, 1), (9, 1, 0), (1, 1, 7)]
)
def test_parts_are_joined_as_one_loop_would(size: int, least: int, in_scan: int) -> None:
    numbers: list[Any] = []

    def one(total: Any, numbered: Any) -> Any:
        number, (x, none) = numbered
        assert none is None
        numbers.append(number)
        return total + x.sum(), (2 * x, {"a": -x}, x.sum())

    xs = jnp.arange(7.0)
    end, (twice, less, sums) = in_parts(one, jnp.zeros(()), (xs, None), size, jax.lax.scan, least)
    assert float(end) == 21.0
    assert twice.tolist() == (2 * xs).tolist() and less["a"].tolist() == (-xs).tolist()
    starts = range(0, 7, size)
    assert sums.tolist() == [float(xs[k : k + size].sum()) for k in starts]
    assert [n for n in numbers if isinstance(n, int)] == [*range(in_scan, len(starts))]


def test_a_marked_scan_is_a_scan_that_stacks_less() -> None:
    scale = jnp.arange(3.0)

    def body(carry: Any, now: Any) -> Any:
        total, count = carry
        product = now["x"] * scale
        constant = jnp.ones(2) * scale[1]
        same = {"a": product, "b": (product, constant), "c": now["x"], "d": count, "e": 3.0}
        return (total + product, count + 1), (same, None, total)

    inputs = {"x": jnp.linspace(0.0, 1.0, 12).reshape(4, 3)}
    start = jnp.zeros(3), jnp.zeros((), jnp.int32)
    wanted = jax.lax.scan(body, start, inputs)
    found = jax.jit(lambda i: marked_scan(body, start, i)[:2])(inputs)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    program = jax.make_jaxpr(lambda i: marked_scan(body, start, i)[:2])(inputs)
    (scan,) = (eqn for eqn in program.eqns if eqn.primitive.name == "scan")
    assert len(scan.outvars) <= 2 + 4  # product, count and total are stacked, x perhaps


def test_the_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # as where tqdm is not installed
    Progress(4).show(0)
    assert capsys.readouterr().err == f"\r[{'#' * 10}{'.' * 30}] 1/4"
    Progress(4).show(3)
    assert capsys.readouterr().err == f"\r[{'#' * 40}] 4/4\n"
    Progress(0).advance(0, jnp.ones(1))
    assert capsys.readouterr().err == ""


def test_the_bar_of_tqdm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar:
        def __init__(self, total: int) -> None:
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, more: int) -> None:
            self.n += more

        def close(self) -> None:
            assert self.n == self.total

    bars: list[Bar] = []
    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Bar))
    progress = Progress(4)
    for number in (0, 2, 3, 0, 1, 0):  # to its end, and twice from the start
        progress.show(number)
    assert [bar.n for bar in bars] == [4, 2, 1] and capsys.readouterr().err == ""


def test_a_long_loop_is_shown_about_a_hundred_times(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)

    def body(carry: None, number: Any) -> tuple[None, None]:
        Progress(500).advance(number, number)
        return carry, None

    jax.lax.scan(body, None, jnp.arange(500))
    jax.effects_barrier()
    assert capfd.readouterr().err.count("\r") == 101
