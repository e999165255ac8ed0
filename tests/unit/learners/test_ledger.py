# SPDX-License-Identifier: Apache-2.0
"""What a learner says of its credit, and what it refuses; the numbers are in ``tests/truth``."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from tests.unit.drivers.net import IN, B, Net, T, made, summed

NUMBERS = np.arange(T * B * IN).reshape(T, B, IN)


def ledger_of(learner: Any, **options: Any) -> bt.CreditLedger:
    xs = jnp.sin(jnp.asarray(NUMBERS, float))
    found = learner.credit_ledger(xs, jnp.cos(xs), step_fn=summed(learner), **options)
    assert isinstance(found, bt.CreditLedger)
    return found


def test_a_table_and_a_picture() -> None:
    learner = made(model=Net())
    ledger = ledger_of(learner)
    lines = str(ledger).splitlines()
    assert lines[0].split() == ["parameter", "what", "from", "to", "share"]
    assert any("recurrent product" in line and "cell.h  cell.h" in line for line in lines)
    assert str(ledger.draw()).startswith("<svg") and ledger._repr_svg_() == str(ledger.draw())
    (own,) = ledger.of(("readout", "weight"))
    assert own.kind == "kept by the rule" and abs(own.share - 1) < 1e-5
    reset = ledger.of(("cell", "Wr", "weight"))
    assert [e.kind for e in reset] == ["kept by the rule", "no trace"] and reset[1].origin == ""


def test_frozen_parameters_have_no_entries_and_masks_count() -> None:
    learner = made(model=Net(), frozen=["readout"])
    ledger = ledger_of(learner)
    assert not ledger.of(("readout", "weight")) and ("readout", "weight") not in ledger.gradients
    first = jnp.arange(T) < 2
    masked = ledger_of(learner, mask=first, reduction="sum")
    xs = jnp.sin(jnp.asarray(NUMBERS[:2], float))
    short = learner.credit_ledger(xs, jnp.cos(xs), step_fn=summed(learner), reduction="sum")
    for a, b in zip(*(jax.tree.leaves(one.gradients) for one in (masked, short)), strict=True):
        assert jnp.allclose(a, b, rtol=1e-4, atol=1e-6)


def fed_back(learner: Any, x: Any) -> Any:
    return learner(x, error=x).sum()


def test_learners_without_one() -> None:
    with pytest.raises(ValueError, match="chunk_size=2 needs a learner with vjp_method"):
        ledger_of(made(), chunk_size=2)
    for filtered in ({}, {"kappa_filter_decay": 0.5}):
        learner = made("eprop", feedback="random", random_feedback_key=1, **filtered)
        with pytest.raises(bt.NotSupportedError, match="error that is fed back.*leave error out"):
            xs = jnp.ones((T, B, IN))
            learner.credit_ledger(xs, step_fn=partial(fed_back, learner))
    kinds = {entry.kind for entry in ledger_of(made("rtrl")).entries}
    assert kinds == {"kept by the rule"}
