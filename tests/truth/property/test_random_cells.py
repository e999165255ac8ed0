# SPDX-License-Identifier: Apache-2.0
"""Online gradients of random cells against the oracle.

``BRAINTRACE_PROPERTY_RUNS=20`` draws twenty times as many cells, other ones each time; with 0.3 it
is the first third of them, of which nothing is asked but to be right.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import braintrace as bt
from braintrace.compiler.delay_lines import with_delay_lines
from braintrace.testing import OracleResult, assert_tree_close, d_rtrl_oracle

from .models import Cell, data, loss_fn
from .programs import Program, Way, cases, sequence, single_steps

RUNS = float(os.environ.get("BRAINTRACE_PROPERTY_RUNS", "1"))
RTOL = 1e-9
SIMPLER = 30

#: What a good part of the cells has, so that a run is not about trivial ones.
OFTEN = ("gradients", "traces", "late reads", "direct parts", "several groups", "several states")


@dataclass
class Tally:
    """What was met in a run."""

    counts: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> int:
        return self.counts[name]

    def add(self, program: Program, result: OracleResult) -> None:
        first = result.steps[0]
        facts = {
            "cells": True,
            "gradients": any(_norm(grad) for grad in result.grads.values()),
            "traces": any(_norm(now.D[g]) for now in result.steps for _, g in result.relations),
            "late reads": any(map(_norm, first.e.values())),
            "direct parts": bool(_norm(first.direct)),
            "several groups": len(result.groups) > 1,
            "several states": any(len(group) > 1 for group in result.groups),
            "shared by groups": len({r for r, _ in result.relations}) < len(result.relations),
            "mixing": program.mixes,
        }
        self.counts.update(name for name, holds in facts.items() if holds)


def _norm(tree: Any) -> float:
    return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


# --- the gradient, in the way that was drawn -------------------------------------------------


def gradient(learner: Any, way: Way, xs: Any, ys: Any) -> Any:
    of_call = of_sequence(learner, way) if way.driver == "sequence" else of_steps(learner)
    total = None
    with nullcontext() if way.jit else jax.disable_jit():
        for k in range(way.calls):
            cut = slice(k * way.steps, (k + 1) * way.steps)
            grads = of_call(xs[cut], ys[cut])
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    return total


def of_sequence(learner: Any, way: Way) -> Any:
    def step_fn(x: Any, y: Any) -> Any:
        return loss_fn(learner(x), y)

    def of_call(xs: Any, ys: Any) -> Any:
        return learner.etrace_grad(xs, ys, step_fn=step_fn, reduction="sum", block_size=way.block)

    return of_call


def of_steps(learner: Any) -> Any:
    @brainstate.transform.jit
    def of_call(xs: Any, ys: Any) -> Any:
        def loss() -> Any:
            return sum(loss_fn(learner(x), y) for x, y in zip(xs, ys, strict=True))

        return brainstate.transform.grad(loss, learner.param_states)()

    return of_call


# --- the property ----------------------------------------------------------------------------


def check(program: Program, way: Way, tally: Tally, scope: Any) -> None:
    """The gradient is that of the oracle, or the cell is refused with its place."""
    model, (xs, ys) = Cell(program), data(program, way.total)
    hidden, groups = with_lines(program, model, xs[0])
    result = d_rtrl_oracle(hidden, (xs, ys), loss_fn, groups=groups, recurrence_scope=scope)
    size = _norm(result.grads)
    if not (result.groups and np.isfinite(size) and size < 1e8):
        return
    tally.add(program, result)
    if tally["cells"] % 100 == 0:
        jax.clear_caches()
    dead = [path for path, grad in result.grads.items() if not _norm(grad)]
    options: dict[str, Any] = {"recurrence_scope": scope, "downstream": "step"}
    learner = bt.D_RTRL(model, frozen=dead, require_trace=False, **options)
    try:
        learner.compile_graph(xs[0])
    except bt.NotSupportedError as error:
        assert re.search(r"\.py:\d+", str(error)), error
        tally.refusals.append(str(error))
        return
    found = gradient(learner, way, xs, ys)
    kept = result.grads.keys() - moving(learner)
    compare({path: found[path] for path in kept}, {path: result.grads[path] for path in kept})


def with_lines(program: Program, model: Cell, x: Any) -> tuple[Cell, Any]:
    """The cell with delay lines of one step as hidden states, for the oracle, and its groups.

    Which of the other states are lines, and of which group, is the compiler's word; without lines
    the oracle finds the groups itself.
    """
    if all(state.kind != "other" for states in program.layers for state in states):
        return model, None
    minfo = with_delay_lines(bt.extract_module_info(model, x))
    lines = [slot.state for slot in minfo.slots if slot.steps_along is not None]
    if not lines:
        return model, None
    layers = tuple(
        tuple(
            replace(spec, kind="plain") if any(state is line for line in lines) else spec
            for spec, state in zip(specs, states, strict=True)
        )
        for specs, states in zip(program.layers, model.states, strict=True)
    )
    groups, _ = bt.find_hidden_groups_from_minfo(minfo)
    return Cell(replace(program, layers=layers)), [group.hidden_paths for group in groups]


def moving(learner: Any) -> set[Any]:
    """Parameters in weights that a state or an input moves.

    The oracle gives them the gradient of the current step, and the learner one through the trace of
    the whole weight: ``test_moving.py`` has the right values of these.
    """
    relations = learner.graph.hidden_param_op_relations
    found = (r.parameter_paths for r in relations if r.primitive.name.endswith("_moving"))
    return {path for paths in found for path in paths}


def compare(grads: Any, reference: Any) -> None:
    """Leaf by leaf; where the reference is zero everywhere, exactly zero."""
    found, wanted = _leaves(grads), _leaves(reference)
    live = {name: leaf for name, leaf in wanted.items() if _norm(leaf)}
    assert found.keys() == wanted.keys()
    if live:
        assert_tree_close({name: found[name] for name in live}, live, RTOL)
    assert not [name for name in wanted.keys() - live.keys() if _norm(found[name])]


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def run(count: int, drawn: Any, scope: str = "diagonal") -> Tally:
    tally = Tally()
    explore(count, drawn, lambda case: check(*case, tally, scope))
    if RUNS > 1:
        print(tally.counts, *Counter(tally.refusals).most_common(20), sep="\n")
    return tally


def explore(count: int, drawn: Any, check: Callable[[Any], None]) -> None:
    """Draw cases, each checked once, and few after one that fails: simpler ones."""
    after: list[Any] = []

    @cache  # shrinking changes many bytes that no choice is read from
    def outcome(case: Any) -> Exception | None:
        error = None
        if len(after) < SIMPLER:
            try:
                check(case)
            except Exception as raised:
                error = raised
        if error or after:
            after.append(case)
        return error

    @settings(
        max_examples=round(count * RUNS),
        derandomize=RUNS <= 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(case=drawn)
    def property_(case: Any) -> None:
        error = outcome(case)
        if error is not None:
            raise error

    property_()


def representative(tally: Tally, refused: float, **shares: float) -> bool:
    """Whether few cells were refused and enough have what they should; a short run is not asked."""
    few = len(tally.refusals) < refused * tally["cells"]
    names = {name.replace("_", " "): share for name, share in shares.items()}
    return RUNS < 1 or (few and all(tally[n] > s * tally["cells"] for n, s in names.items()))


def test_random_cells() -> None:
    tally = run(90, cases(sequence))
    often = {name.replace(" ", "_"): 0.15 for name in OFTEN}
    assert representative(tally, 0.05, shared_by_groups=0, **often), tally


def test_random_cells_step_by_step() -> None:
    tally = run(25, cases(single_steps))
    assert representative(tally, 0.1), tally


def test_random_cells_in_the_coupled_scope() -> None:
    tally = run(25, cases(sequence), "coupled")
    assert representative(tally, 0.1, traces=0.3), tally


def test_random_cells_by_default() -> None:
    """With filters in front of uniform states: the oracle with the influence on these states."""
    met: Counter[str] = Counter()

    def one(case: Any) -> None:
        program, way = case
        model, sequences = Cell(program), data(program, way.total)
        published = d_rtrl_oracle(model, sequences, loss_fn).grads
        if not (np.isfinite(_norm(published)) and _norm(published) < 1e8):
            return
        dead = [path for path, grad in published.items() if not _norm(grad)]
        learner = bt.D_RTRL(model, frozen=dead, require_trace=False)
        try:
            learner.compile_graph(sequences[0][0])
        except bt.CompilationError:
            return
        met.update(cells=1, filters=bool(learner.filters))
        if learner.filters and not moving(learner):
            oracle = d_rtrl_oracle(model, sequences, loss_fn, uniform=learner.graph.uniform).grads
            found = gradient(learner, way, *sequences)
            live = [path for path in oracle if path not in dead]
            compare({path: found[path] for path in live}, {path: oracle[path] for path in live})

    explore(24, cases(sequence), one)
    assert RUNS < 1 or met["filters"] > 0.15 * met["cells"], met


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_random_cells_that_mix_positions(scope: str) -> None:
    """What is refused here may be more: loops and conditions on the way of a state, long tails."""
    tally = run(25, cases(sequence, mixing=True), scope)
    assert representative(tally, 0.4, mixing=0.4), tally
