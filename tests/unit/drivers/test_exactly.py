# SPDX-License-Identifier: Apache-2.0
"""A learner as if it were D-RTRL; the numbers that follow are in ``tests/truth/test_ledger.py``."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import pytest

from braintrace.compiler.module_info import StateKind
from braintrace.drivers.exactly import (
    Exactly,
    cleared_filters,
    follows_the_model,
    without_moving,
)
from tests.unit.drivers.net import IN, B, Growing, Net, made


def network() -> brainstate.nn.Module:
    return brainstate.nn.Sequential(Net(), Growing(0.9))


@pytest.mark.parametrize(
    ("rule", "how"),
    [("pp_prop", {"decay_or_rank": 0.8}), ("eprop", {"kappa_filter_decay": 0.5})],
)
def test_the_step_of_the_model_in_place_of_that_of_the_rule(rule: str, how: dict) -> None:
    learner, plain = made(rule, model=network(), **how), made(model=network())
    exact = Exactly(learner, learner.executor.with_leaks)
    assert learner.executor.with_leaks is exact.executor and exact.model is learner.model
    assert follows_the_model(exact.graph) and not follows_the_model(learner.graph)
    assert follows_the_model(plain.graph) and exact.rule.name == plain.rule.name
    (one, other) = ([g.group.varshape for g in e.rule.executor.groups] for e in (exact, plain))
    assert one == other
    hidden = StateKind.HIDDEN
    assert exact.states_of(hidden).keys() == learner.states_of(hidden).keys()
    seen = []
    with exact.stepping_by(lambda who, args, given: seen.append((who, args, given))):
        learner(jnp.ones((B, IN)))
    assert seen[0][0] is exact and seen[0][2] is None
    learner(jnp.ones((B, IN)))  # by itself again
    again = learner.executor.for_model(learner.model)
    assert again.with_leaks is not exact.executor


def test_filters_come_back_and_nothing_moves() -> None:
    learner, x = made(model=network()), jnp.ones((B, IN))
    learner(x)
    filters = [s.state for s in learner.graph.executed.module_info.slots if s.is_filter]
    before = [state.value for state in filters]
    with cleared_filters(learner):
        assert filters and not any(state.value.any() for state in filters)
    moved = without_moving(learner, x)
    assert all((state.value == v).all() for state, v in zip(filters, before, strict=True))
    assert (moved == learner(x)).all()
