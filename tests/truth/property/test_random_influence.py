# SPDX-License-Identifier: Apache-2.0
"""RTRL of random cells against backpropagation: several layers, other states, tails that mix.

``BRAINTRACE_PROPERTY_RUNS`` as for random cells.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import brainstate
import jax
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import bptt

from .models import Cell, data, loss_fn
from .programs import cases, sequence, single_steps
from .test_random_cells import RUNS, compare, explore, gradient


def size(tree: Any) -> float:
    return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))


def check(case: Any, met: Counter[str]) -> None:
    """The gradient is that of backpropagation, or the cell is refused."""
    program, way = case
    model, (xs, ys) = Cell(program), data(program, way.total)
    start = [(state, state.value) for states in model.states for state in states]
    _, reference = bptt(model, (xs, ys), loss_fn)
    for state, value in start:
        state.value = value
    if not size(reference) < 1e8:
        return
    dead = [path for path, grad in reference.items() if not size(grad)]
    learner = bt.RTRL(model, frozen=dead, require_trace=False)
    try:
        learner.compile_graph(xs[0])
    except (bt.NotSupportedError, bt.CompilationError):
        met["refused"] += 1
        return
    own = {p for p, s in learner.hidden_states.items() if isinstance(s, brainstate.HiddenState)}
    met["cells"] += 1
    met["carried"] += bool(learner.rule.carried)
    met["no HiddenState"] += any(s.path not in own for s in learner.rule.carried)
    compare(gradient(learner, way, xs, ys), reference)


@pytest.mark.parametrize(("count", "way"), [(12, sequence), (4, single_steps)])
def test_random_cells(count: int, way: Any) -> None:
    met: Counter[str] = Counter()
    explore(count, cases(way, mixing=True), lambda case: check(case, met))
    assert RUNS < 1 or met["carried"] > 0.5 * met["cells"], met
    assert RUNS < 1 or count < 12 or met["no HiddenState"], met
