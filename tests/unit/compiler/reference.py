# SPDX-License-Identifier: Apache-2.0
"""The model of the design's reference values."""

from __future__ import annotations

from typing import Any

import brainstate
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions


class Reference(brainstate.nn.Module):
    """The model of the design's reference values."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn1 = bt.nn.ValinaRNNCell(10, 32)
        self.rnn2 = bt.nn.ValinaRNNCell(32, 16)
        self.out = bt.nn.Linear(16, 4)

    def update(self, x: Any) -> Any:
        return self.out(self.rnn2(self.rnn1(x)))


RNN1, RNN2 = ("rnn1", "W", "weight"), ("rnn2", "W", "weight")


X = np.ones(10)


@pytest.fixture
def model() -> Any:
    model = Reference()
    brainstate.nn.init_all_states(model)
    return model


def count(jaxpr: Any) -> int:
    """Equations of a jaxpr, those of the programs inside of them included."""
    inner = (sub for eqn in jaxpr.eqns for sub in versions.inner_jaxprs(eqn))
    return len(jaxpr.eqns) + sum(map(count, inner))
