# SPDX-License-Identifier: Apache-2.0
"""Random tails against backpropagation: the state has no memory but its own, so the rule is exact.

``BRAINTRACE_PROPERTY_RUNS`` as for random cells.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import braintrace as bt
from braintrace.jaxprs.positions import alignment
from braintrace.testing import bptt

from .models import loss_fn
from .tails import Tail, Tailed, tails
from .test_random_cells import RUNS, compare, explore

STEPS = 3


def check(tail: Tail) -> None:
    model = Tailed(tail)
    xs, ys = model.data(STEPS)
    start = model.h.value
    learner = bt.D_RTRL(model)
    learner.compile_graph(xs[0])
    _, reference = bptt(model, (xs, ys), loss_fn)
    model.h.value = start
    grads = learner.etrace_grad(
        xs,
        ys,
        step_fn=lambda x, y: loss_fn(learner(x), y),
        reduction="sum",
        block_size=tail.block,
    )
    compare(grads, reference)


def test_random_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an axis keeps its index and the rest of the rows differ.

    More than a quarter of the tails are wrong when that is not looked at.
    """
    met: Counter[str] = Counter()
    uniform = alignment._uniform

    def counted(axes: Any, elements: Any, result: Any) -> Any:
        found = uniform(axes, elements, result)
        met["rows that differ"] += found != axes
        return found

    monkeypatch.setattr(alignment, "_uniform", counted)

    def one(tail: Tail) -> None:
        met["tails"] += 1
        check(tail)

    explore(32, tails(), one)
    assert RUNS < 1 or met["rows that differ"] > 0.2 * met["tails"], met
