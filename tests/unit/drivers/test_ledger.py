# SPDX-License-Identifier: Apache-2.0
"""What a probe is made of: steps cut and whole, their leaves, and where credit can end."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import pytest

from braintrace.compiler.module_info import StateKind
from braintrace.drivers.ledger import Nodes, Probe
from braintrace.drivers.options import masked_step
from braintrace.drivers.traced import trace_step
from tests.unit.drivers.net import IN, B, made, summed


def probe_of(learner: Any, step_fn: Any) -> Probe:
    rule, x = learner.rule, jnp.zeros((B, IN))
    trace = partial(trace_step, learner, masked_step(step_fn, False), (None, x, x), ())
    return Probe(rule, trace(), trace(rule=Nodes(rule.executor)))


def test_leaves_and_targets() -> None:
    learner = made()
    probe = probe_of(learner, summed(learner))
    assert probe.targets == [0] and [*probe.carried] == [("cell", "h")]
    (place,) = probe.carried["cell", "h"]
    assert probe.numbers[place] == place and set(probe.weights) == set(learner.param_states)
    values = {place: jnp.ones((B, 3))}
    assert probe.of_target(0, values)[place].all()
    assert [v.shape for v in Nodes(probe.executor).perturbations()] == [(B, 3)]
    assert not probe.places(StateKind.OTHER)


def test_the_learner_is_called_once() -> None:
    learner = made()
    with pytest.raises(ValueError, match="must call the learner exactly once"):
        probe_of(learner, lambda x, y: learner(x).sum() + learner(x).sum())
