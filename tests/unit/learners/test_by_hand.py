# SPDX-License-Identifier: Apache-2.0
"""What is known of places that users gave; that they are refused needs several devices."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.learners import by_hand
from braintrace.ops.operation import holds_convolutions


class Line(brainstate.nn.Module):
    """Places on a line that hear one another through a kernel, or by a sum."""

    def __init__(self, convolves: bool) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((2, 2, 3) if convolves else (4, 4)))
        self.h = brainstate.HiddenState(jnp.zeros((1, 2, 4)))

    def update(self, x: Any) -> Any:
        w, h = self.w.value, self.h.value
        y = bt.conv(h, w) if w.ndim == 3 else bt.einsum("bcx,xy->bcy", h, w)
        self.h.value = jnp.tanh(y + x)
        return self.h.value


@pytest.mark.parametrize("convolves", [True, False])
def test_whether_a_step_convolves(convolves: bool) -> None:
    learner = bt.compile(Line(convolves), "d_rtrl", jnp.ones((1, 2, 4)))
    assert holds_convolutions(learner.graph.module_info.jaxpr) is convolves
    assert by_hand.refusal(learner, (jnp.ones((1, 2, 4)), 1.0)) is None  # nothing is divided
