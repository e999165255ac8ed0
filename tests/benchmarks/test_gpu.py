# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark for GPUs that need none."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import numpy as np
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
    now[0] = 60.0
    part = budget.part(0.25)
    assert (part.left, budget.part(1).left) == (25, budget.left)
    now[0] = 70.0
    assert (part.left, part.at_most(30), part.part(1).left) == (15, 15, 15)
    now[0] = 109.0
    assert budget.at_most(30) == 0 > budget.left
    assert budget.part(0.5).at_most(1) == 0
    patient = parts.plan.Budget(1000, clock=lambda: 0.0, patience=2.0)
    assert (patient.at_most(30), patient.part(0.25).at_most(30)) == (60, 60)
    assert patient.part(0.25).at_most(300) == 250


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


def test_no_time_is_no_process(parts: ModuleType) -> None:
    with parts.workers.Guarded(BENCHMARKS) as worker:
        assert worker.start(0, "gru") == {"error": "no time was left"}
        assert worker.running is None and worker.number == 0


def test_wheels_are_unpacked_without_pip(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parts.workers, "FOLDER", tmp_path / "benchmarks")
    assert parts.workers.installed(tmp_path / "a") == {"ours": tmp_path / "a" / "none"}
    (tmp_path / "wheels").mkdir()
    with ZipFile(tmp_path / "wheels" / "some-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/__init__.py", "x = 1")
    files = ["some-1-py3-none-any.whl", "jax-0.11.0-py3-none-any.whl"]  # which the machine has
    (tmp_path / "sets.json").write_text(json.dumps({"ours": files, "peer": files[:1]}))
    found = parts.workers.installed(tmp_path / "b")
    assert found == {name: tmp_path / "b" / name for name in ("ours", "peer")}
    assert all(
        (folder / "some" / "__init__.py").read_text() == "x = 1" for folder in found.values()
    )


class Scripted:
    """A worker in place of a process; contenders named in ``deadly`` end it, at any request."""

    def __init__(self, deadly: str = "") -> None:
        self.deadly, self.number, self.running, self.known = deadly, 0, None, set[str]()

    def start(self, seconds: float, *case: Any) -> dict[str, Any]:
        if self.running is None:
            self.number, self.running, self.known = self.number + 1, object(), set()
        return {}

    def ask(self, seconds: float, method: str, *given: Any) -> dict[str, Any]:
        name = given[0].name if method == "prepare" else given[0]
        if self.running is None or name == self.deadly:
            self.running = None
            return {"error": "the process ended"}
        if method == "run":
            return {"wall": 0.5} if name in self.known else {"error": "not compiled here"}
        self.known.add(name)
        np.savez(given[1], a=np.ones(2))
        return {"first_s": 1.0}


def test_who_ends_the_process_is_the_only_one_without_a_time(
    parts: ModuleType, tmp_path: Path
) -> None:
    case = parts.plan.CASES[0]
    case = case._replace(team=tuple(one for one in case.team if not one.peer))
    worker, effort = Scripted("D-RTRL"), parts.plan.Effort(3, 10.0)
    budget = parts.plan.Budget(1000, clock=lambda: 0.0)
    found = parts.measure.time_case(case, {False: worker}, effort, budget, tmp_path / "p.zip")
    walls = {name: len(one["wall"]) for name, one in found["results"].items()}
    before, after = ["BPTT", "BPTT, brainstate layers"], [one.name for one in case.team[3:]]
    assert walls == {"D-RTRL": 0} | dict.fromkeys(before, 1) | dict.fromkeys(after, 4)
    assert [name for name, one in found["results"].items() if "error" in one] == ["D-RTRL"]
    assert worker.number == 2


def test_a_case_that_fails_does_not_stop_the_rest(
    parts: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checked: list[list[str]] = []

    def check_all(models: list[str], packages: Path, budget: Any) -> Any:
        checked.append(models)
        late = {"error": "no time was left"} if len(checked) == 1 else {"distances": [0.0]}
        return {
            m: {"float32": {"BPTT": late if m == "lif" else {"distances": [0.0]}}} for m in models
        }

    def time_case(case: Any, *_: Any) -> Any:
        if case.name.startswith("gru"):
            raise MemoryError("all of it")
        return {"results": {}}

    for name, value in {"check_all": check_all, "time_case": time_case}.items():
        monkeypatch.setattr(parts.measure, name, value)
    monkeypatch.setattr(parts.measure, "introduce", lambda *_: None)
    run: Any = {"checks": {}, "cases": {}, "profiles": {}, "left_out": [], "failed": {}}
    cases, said = parts.plan.CASES[:2], list[str]()
    budget = parts.plan.Budget(1000, clock=lambda: 0.0)
    effort, given = parts.plan.EFFORT, (cases, {"ours": tmp_path})
    parts.measure.measure(run, *given, effort, budget, said.append, tmp_path / "p.zip")
    assert run["failed"] == {cases[0].name: "MemoryError: all of it"}
    assert [*run["cases"]] == [cases[1].name]
    assert checked == [["gru", "lif"], ["lif"]]
    assert parts.measure.unchecked(run["checks"]) == []
    assert said == ["checks", cases[0].name, cases[1].name, "checks of lif once more"]


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
    assert parts.table.disagreements(checks) == ["gru: D-RTRL was not compared: killed"]
    checks["gru"]["float32"]["BPTT"]["distances"] = [None]
    assert parts.table.disagreements(checks)[0] == "gru: BPTT is wrong"
    assert "lif-16 failed: ValueError: x" in parts.table.text(
        {**run, "failed": {"lif-16": "ValueError: x"}}
    )
