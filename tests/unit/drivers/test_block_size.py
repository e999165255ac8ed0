# SPDX-License-Identifier: Apache-2.0
"""How many steps are evaluated together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.drivers import block_size
from braintrace.drivers.block_size import (
    LARGE,
    MIB,
    NEAR,
    NEAREST,
    OFF_CPU,
    WHOLE,
    auto_block_size,
    budget,
    equal_blocks,
    record_bytes,
)
from braintrace.ops.traces.by_rules import StructuredTrace
from tests import zoo


@pytest.fixture
def rule() -> Any:
    x = jnp.ones((2, zoo.IN), "float64")
    return bt.compile(zoo.Leaky(), "d_rtrl", x, batch_size=2, downstream="step").rule


def test_a_record_is_as_large_as_makes_passing_over_the_traces_cheap() -> None:
    assert budget(0) == NEAR == 16 * MIB
    assert budget(10 * MIB) == 25 * MIB
    assert budget(200 * MIB) == LARGE  # and not 500
    assert budget(1024 * MIB) == 1024 * MIB
    assert budget(0, WHOLE) == WHOLE


@pytest.mark.parametrize(
    ("steps", "longest", "size"),
    [
        (100, 25, 25),
        (100, 30, 25),  # 20 and 25 are near
        (97, 30, 25),  # a prime: four blocks, the last one shorter
        (7, 100, 7),
        (5, 1.0, 1),
        (100, 17, 20),  # a little longer, but it divides
    ],
)
def test_blocks_divide_the_sequence_if_they_can(steps: int, longest: float, size: int) -> None:
    assert equal_blocks(steps, longest) == size


def test_the_bytes_of_a_step(rule: Any) -> None:
    hidden, x = 2 * zoo.HIDDEN * 8, 2 * zoo.IN * 8
    # perturbations and signals, the input, f and D of one state
    assert record_bytes(rule) == rule.bytes_per_step + 2 * hidden + x + hidden + hidden


def test_short_sequences_are_one_block_unless_a_trace_is_carried(rule: Any) -> None:
    per_step = record_bytes(rule)
    fits = WHOLE // per_step
    assert auto_block_size(rule, fits, carried=False) == fits
    assert auto_block_size(rule, 4 * fits, carried=False) < fits
    longest = NEAR // per_step
    assert 0.6 * longest <= auto_block_size(rule, 64 * longest) <= 1.25 * longest
    assert auto_block_size(rule, 100) == 100


def test_off_a_cpu_blocks_are_longer_and_their_record_is_bounded(
    rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = NEAR // record_bytes(rule)
    on_cpu = auto_block_size(rule, 64 * longest)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = auto_block_size(rule, 64 * longest)
    assert on_cpu < 2 * found / (OFF_CPU // NEAR) <= 4 * on_cpu
    assert found * record_bytes(rule) <= 1.25 * OFF_CPU < LARGE


def test_what_parameters_without_a_trace_record_makes_blocks_shorter(rule: Any) -> None:
    assert auto_block_size(rule, 10_000, besides=NEAR // 10) <= 12
    assert auto_block_size(rule, 10_000, besides=10 * NEAR) == 1


def test_traces_that_are_written_example_by_example_are_passed_over_more_often(
    rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, less = block_size.TIMES_THE_TRACES, block_size.TIMES_BY_EXAMPLE
    assert block_size.times_the_traces(rule) == usual
    monkeypatch.setattr(StructuredTrace, "by_example", True)
    states = rule.rules[0].num_state
    assert block_size.times_the_traces(rule) == pytest.approx(less * states)
    monkeypatch.setattr(block_size, "TIMES_BY_EXAMPLE", 2 * usual)
    assert block_size.times_the_traces(rule) == usual
    monkeypatch.setattr(block_size, "TIMES_BY_EXAMPLE", less)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # each block starts many kernels
    assert block_size.times_the_traces(rule) == usual
    assert budget(100 * MIB, times=less) == 100 * MIB * less


def test_a_rule_that_takes_steps_has_short_blocks_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.ones((2, zoo.IN), "float64")
    options: Any = {"batch_size": 2, "downstream": "step", "decay_or_rank": 0.9}
    rule = bt.compile(zoo.Leaky(), "pp_prop", x, **options).rule
    longest = NEAREST // rule.bytes_per_step
    for carried in (True, False):
        assert 0.6 * longest <= auto_block_size(rule, 64 * longest, carried) <= 1.25 * longest
    assert auto_block_size(rule, 10_000, besides=NEAREST // 10) <= 12
    monkeypatch.setattr(block_size, "TIMES_THE_SUMS", 1e9)  # weights that are much larger
    longest = NEAR // rule.bytes_per_step
    assert 0.6 * longest <= auto_block_size(rule, 64 * longest) <= 1.25 * longest
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert auto_block_size(rule, WHOLE // record_bytes(rule), False) == WHOLE // record_bytes(rule)
