# SPDX-License-Identifier: Apache-2.0
"""What a probe is made of: steps cut and whole, their leaves, and where credit can end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from braintrace.compiler.module_info import StateKind
from braintrace.drivers.options import masked_step
from braintrace.drivers.probe import Nodes, Probe, backward
from braintrace.drivers.traced import trace_step
from tests.unit.drivers.net import IN, B, made, summed


def probe_of(learner: Any, step_fn: Any) -> Probe:
    rule, x = learner.rule, jnp.zeros((B, IN))
    step, weights = masked_step(step_fn, False), [*learner.param_states.values()]
    trace = partial(trace_step, learner, step, (None, x, x), weights, carried=True)
    return Probe(rule, trace(), trace(rule=Nodes(rule.executor)))


def test_leaves_and_targets() -> None:
    learner = made()
    probe = probe_of(learner, summed(learner))
    assert probe.targets == [0] and [*probe.carried] == [("cell", "h")]
    (place,) = probe.carried["cell", "h"]
    assert probe.numbers[place] == place and len(probe.weights) == sum(
        len(s.value) for s in learner.param_states.values()
    )
    values = {place: jnp.ones((B, 3))}
    assert probe.of_target(0, values)[place].all()
    assert [v.shape for v in Nodes(probe.executor).perturbations()] == [(B, 3)]
    assert not probe.places(StateKind.OTHER)
    # operands of products have one sum for all steps, in which each has its gradients but once
    weights = {*probe.weights}
    assert not probe.stepwise() and not weights & probe.whole.direct.elsewhere


def test_gradients_inside_of_windows_and_at_their_borders() -> None:
    learner = made()
    probe, xs = probe_of(learner, summed(learner)), jnp.ones((5, B, IN))
    (place,) = probe.carried["cell", "h"]
    found = [backward(replace(probe, size=size), (None, xs, xs), 1.0) for size in (None, 1, 2, 5)]
    plain, single, pairs, whole = (rows for rows, *_ in found)
    assert found[0][3] is None and plain.border is None
    for rows, _, total, inside in found[1:]:
        assert jax.tree.all(jax.tree.map(jnp.allclose, total, found[0][2]))
        assert jax.tree.all(jax.tree.map(jnp.allclose, inside, total)) == (rows is whole)
    # windows of one step drop for all later losses, longer ones for those of later windows
    assert jnp.allclose(single.later[place], plain.later[place])
    assert jnp.allclose(pairs.later[place][1::2], plain.later[place][1::2])
    assert not whole.later[place].any() and not whole.border[place].any()
    assert [bool(step.any()) for step in pairs.border[place]] == [False, True, False, True, False]


def test_the_learner_is_called_once() -> None:
    learner = made()
    with pytest.raises(ValueError, match="must call the learner exactly once"):
        probe_of(learner, lambda x, y: learner(x).sum() + learner(x).sum())
