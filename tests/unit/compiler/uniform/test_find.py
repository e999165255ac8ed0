# SPDX-License-Identifier: Apache-2.0
"""Which hidden states are uniform, and which filters they get."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from braintrace.compiler.filters import move_leaks
from braintrace.compiler.module_info import StateKind
from braintrace.compiler.uniform.moving import Moving
from tests.unit.compiler.uniform.leaky import analysed


def test_the_step_with_filters() -> None:
    minfo, found, _ = analysed(lambda s, x, v: 0.9 * v + 0.1 * s.w(x))
    step = move_leaks(Moving(minfo, found))
    filters = [slot for slot in step.slots if slot.is_filter]
    assert sorted(slot.state.value.shape for slot in filters) == [(), (2, 4)]
    assert step.slots_of(StateKind.HIDDEN) == ()  # the inputs have no derivative
    assert [s.path for s in minfo.slots_of(StateKind.HIDDEN)] == [("v",)]


def test_recurrent_input_is_held() -> None:
    def step(s: Any, x: Any, v: Any) -> Any:
        return 0.9 * v + s.w(jnp.concatenate([x[:, :1], jnp.tanh(v)], -1))

    _, found, _ = analysed(step)
    (state,) = found.values()
    assert sorted(source.cut for source in state.sources.values()) == [False, True]
