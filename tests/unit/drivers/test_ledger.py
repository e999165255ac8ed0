# SPDX-License-Identifier: Apache-2.0
"""Which entries there are for which rule; their numbers are in ``tests/truth``."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from braintrace.drivers.ledger import probed
from braintrace.drivers.options import GradOptions
from braintrace.drivers.probe import KEPT, RECURRENT, RULE, UNTRACED
from tests.unit.drivers.net import IN, B, made, summed


@pytest.mark.parametrize(
    ("rule", "kinds"),
    [
        ("d_rtrl", [KEPT, RECURRENT, UNTRACED]),
        ("pp_prop", [KEPT, RULE, RECURRENT, UNTRACED]),
        ("rtrl", [KEPT]),
        ("dni", [KEPT, RULE]),
    ],
)
def test_kinds(rule: str, kinds: list[Any]) -> None:
    options = {"decay_or_rank": 0.8} if rule == "pp_prop" else {}
    learner = made(rule, **options)
    xs = jnp.ones((3, B, IN))
    size = 1 if rule == "dni" else None
    how = GradOptions(summed(learner), tuple(learner.trained_states.items()), chunk_size=size)
    whole, found = probed(learner, how, how.step_fn, None, (xs, xs), None)
    assert [entry.kind for entry in found] == kinds
    assert all(entry.gradients.keys() == whole.keys() for entry in found)
