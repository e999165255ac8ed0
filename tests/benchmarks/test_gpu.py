# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark for GPUs that need none."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

#: The form in which XLA writes a program for a GPU.
PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused_computation (param_0: f32[8]) -> f32[8] {
  %param_0 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(f32[8]{0} %param_0, f32[8]{0} %param_0)
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %gte = f32[8]{0} get-tuple-element((s32[], f32[8]{0}) %arg), index=1
  %fusion.1 = f32[8]{0} fusion(f32[8]{0} %gte), kind=kLoop, calls=%fused_computation
  %gemm = (f32[8]{0}, s8[4]{0}) custom-call(f32[8]{0} %fusion.1), custom_call_target="__cublas$gemm"
  ROOT %tuple = (s32[], f32[8]{0}) tuple(s32[] %gte, f32[8]{0} %fusion.1)
}

%cond (arg.1: (s32[], f32[8])) -> pred[] {
  %arg.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] fusion((s32[], f32[8]{0}) %arg.1), kind=kLoop, calls=%fused_computation
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %copy-start = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(f32[8]{0} %p)
  %copy-done = f32[8]{0} copy-done((f32[8]{0}, f32[8]{0}, u32[]) %copy-start)
  %while = (s32[], /*index=1*/f32[8]{0}) while((s32[], f32[8]{0}) %p), condition=%cond, \
body=%body, backend_config={"known_trip_count":{"n":"100"},"known_init_step":{"init":"0"}}
  ROOT %out = f32[8]{0} get-tuple-element((s32[], f32[8]{0}) %while), index=1
}
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package of the program, with those of its modules that the tests use."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _gpu
    from _gpu import kernels, measure, plan, table, workers  # noqa: F401

    return _gpu


def test_instructions_are_counted_as_often_as_loops_turn(parts: ModuleType) -> None:
    found = parts.kernels.launches(PROGRAM)
    assert found == {"copy-start": 1, "fusion": 100, "custom-call": 100}
    unknown = parts.kernels.launches(PROGRAM.replace("known_trip_count", "nothing"))
    assert unknown == {"copy-start": 1, "fusion": 2, "custom-call": 1, "unknown loop": 1}


def test_a_budget_ends_before_its_seconds_are_up(parts: ModuleType) -> None:
    now = [10.0]
    budget = parts.plan.Budget(100, clock=lambda: now[0])
    assert budget.at_most(30) == 30
    now[0] = 80.0
    assert (budget.spent, budget.at_most(30)) == (70, 30 - parts.plan.RESERVE_S)
    now[0] = 109.0
    assert budget.at_most(30) == 0 > budget.left


def test_cases_have_names_of_their_own_and_quick_ones_are_of_each_model(parts: ModuleType) -> None:
    cases = parts.plan.CASES
    assert len({case.name for case in cases}) == len(cases)
    quick = parts.plan.quick(cases)
    assert {case.name.partition("-")[0] for case in quick} == set(parts.plan.CHECKS)
    assert max(case.sizes.units for case in quick) == 16


def test_what_does_not_answer_in_time_is_given_up(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.workers, "MODULE", "asyncio")  # reads its input and says nothing
    with parts.workers.Guarded(BENCHMARKS) as worker:
        assert "no answer in 1 s" in worker.start(1, "gru")["error"]
        assert worker.ask(1, "facts") == {"error": "its process has ended"}


def test_tables_say_what_ran_and_what_failed(parts: ModuleType) -> None:
    ran = {"work": "gradient", "wall": [0.2, 0.1, 0.3], "steps": 100, "trace_s": 1, "compile_s": 2}
    ran |= {"bytes": 2**20, "peak": None, "trace_bytes": 0, "kernels_per_step": 7.5}
    results = {"BPTT": ran, "D-RTRL": {**ran, "wall": [0.05]}, "pp_prop": {"error": "no memory"}}
    sizes = {"steps": 100, "batch": 1, "inputs": 8, "units": 16}
    case = {"sizes": sizes, "precision": "float32", "results": results}
    checks = {"gru": {"float32": {"BPTT": {"distances": [1e-6]}, "D-RTRL": {"error": "killed"}}}}
    run = {"seconds": 3.0, "checks": checks, "cases": {"gru-16": case}, "left_out": ["lif-16"]}
    text = parts.table.text(run)
    assert "| BPTT | 1.00 | 200.00 | 100.00 | 2000.0 |  | 3.0 | 1.0 |  | 7.50 |  | 3 |" in text
    assert "| D-RTRL | 0.25 | 50.00 |" in text
    assert "| pp_prop | no memory |" in text
    assert "No time was left for: lif-16." in text
    assert parts.table.disagreements(checks) == ["gru: D-RTRL is wrong or failed"]
