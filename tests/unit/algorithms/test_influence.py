# SPDX-License-Identifier: Apache-2.0
"""What RTRL and SnAp say of themselves; their numbers are in ``tests/truth/test_influence.py``."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import InfluenceRule, ParamDimRule, SnApRule


class Two(brainstate.nn.Module):
    """A layer, a readout with a memory that is not hidden, a clock, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = bt.nn.GRUCell(2, 3, key=0), bt.nn.Linear(3, 2, key=1)
        self.gain, self.still = (brainstate.ParamState(jnp.ones(2)) for _ in range(2))

    def init_state(self, batch_size: int) -> None:
        self.mean = brainstate.ShortTermState(jnp.zeros((batch_size, 2)))
        self.clock = brainstate.ShortTermState(jnp.zeros(()))

    def update(self, x: Any) -> Any:
        self.clock.value = self.clock.value + x.sum()
        self.mean.value = 0.8 * self.mean.value + self.out(self.cell(x))
        return self.mean.value * self.gain.value + self.still.value


def made(algorithm: Any = bt.RTRL, **options: Any) -> Any:
    options = {"batch_size": 2, "frozen": ["still"], **options}
    return bt.compile(Two(), algorithm, jnp.ones((2, 2)), **options)


def test_what_is_carried_and_what_has_a_trace() -> None:
    learner = made()
    rule = learner.rule
    assert isinstance(rule, InfluenceRule) and rule.name == "RTRL" and not rule.in_single_steps
    assert [s.path for s in rule.carried] == [("cell", "h"), ("mean",)]  # the clock has no weight
    assert rule.traced_paths == tuple(p for p in learner.param_states if p[0] in ("cell", "out"))
    assert [trace.shape for trace in rule.init()] == [
        (rule.num_entries, 2, 3),
        (rule.num_entries, 2, 2),
    ]
    of_hidden, of_mean = learner.get_etrace_of(("cell", "Wr", "weight"))
    assert {k: v.shape for k, v in of_hidden.items()} == {"bias": (2, 3, 3), "weight": (2, 5, 3, 3)}
    assert {k: v.shape for k, v in of_mean.items()} == {"bias": (3, 4), "weight": (5, 3, 4)}
    report = str(learner.report)
    shown = (
        f"traces: influence of {rule.num_entries} parameter entries on cell.h [2, 3], mean [2, 2]"
    )
    assert shown in report and "runs the model backward 5 times, all steps of" in report


def test_rules_within_groups_are_those_of_single_steps_downstream() -> None:
    kinds = {
        (name, down): type(made(*name, downstream=down).rule)
        for name in ((bt.RTRL,),)
        for down in ("step", "linear")
    }
    assert [*kinds.values()] == [ParamDimRule, InfluenceRule]
    assert isinstance(made(bt.SnAp, downstream="step", n=2).rule, SnApRule)
    rule = made(bt.SnAp, n=1).rule
    assert rule.name == "SnAp-1" and rule.in_single_steps
    for random in (bt.ETraceConfig(recurrence_scope="full", learning_signal="random_feedback"),):
        assert not isinstance(made(random).rule, InfluenceRule)


def test_it_has_no_blocks() -> None:
    rule = made().rule
    for method in (rule.solve, rule.solve_at_start, rule.update):
        with pytest.raises(NotImplementedError, match="reads no block"):
            method(None, None, None)
    assert rule.credit(None, {}, {}) == {} and not rule.from_blocks and rule.perturbations() == []
    assert rule.bytes_per_step > 0


def test_nothing_to_carry() -> None:
    """All that reaches a state is frozen: gradients are of the current step."""
    learner = made(frozen=["cell", "out", "still"], require_trace=False)
    assert learner.rule.init() == () and learner.rule.traced_paths == ()
    xs = jnp.ones((4, 2, 2))
    grads = learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), reduction="sum")
    assert np.abs(grads["gain",]).sum() > 0 and not np.any(grads["cell", "Wr", "weight"]["weight"])
    with pytest.raises(bt.CompilationError, match="nothing to train online"):
        made(frozen=["cell", "out", "still"])
