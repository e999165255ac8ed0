# SPDX-License-Identifier: Apache-2.0
"""Which hidden states are uniform, what drives them, and which filters they get."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.filters import move_leaks
from braintrace.compiler.module_info import StateKind
from braintrace.compiler.uniform import MOST_LEAKS, find_uniform


class Leaky(brainstate.nn.Module):
    """``step(model, x, v) -> new v`` of states [2, 3] for inputs [2, 4]."""

    def __init__(self, step: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.step, self.w = step, bt.nn.Linear(4, 3)
        self.v = brainstate.HiddenState(jnp.zeros((2, 3)))

    def update(self, x: Any) -> Any:
        self.v.value = self.step(self, x, self.v.value)
        return self.v.value


def analysed(step: Callable[[Any, Any, Any], Any]) -> tuple[Any, dict[Any, Any], dict[Any, str]]:
    minfo = bt.extract_module_info(Leaky(step), jnp.ones((2, 4)))
    _, groups = bt.find_hidden_groups_from_minfo(minfo)
    return minfo, *find_uniform(minfo, groups)


def test_a_leak_and_its_driver() -> None:
    minfo, found, _ = analysed(lambda s, x, v: 0.9 * v + 0.1 * s.w(x))
    (state,) = found.values()
    (source,) = state.sources.values()
    assert source.atom is minfo.jaxpr.invars[0] and not source.cut and source.factors == ()
    assert [len(factors) for factors in state.leak] == [1]
    assert len(state.affine) == 1  # the operation adds its bias


def test_the_step_with_filters() -> None:
    minfo, found, _ = analysed(lambda s, x, v: 0.9 * v + 0.1 * s.w(x))
    step = move_leaks(minfo, found)
    filters = [slot for slot in step.slots if slot.is_filter]
    assert sorted(slot.state.value.shape for slot in filters) == [(), (2, 4)]
    assert step.slots_of(StateKind.HIDDEN) == ()  # the inputs have no derivative
    assert [s.path for s in minfo.slots_of(StateKind.HIDDEN)] == [("v",)]


def test_a_leak_of_two_terms() -> None:
    _, found, _ = analysed(lambda s, x, v: v + (s.w(x) - v) / 5.0)
    (state,) = found.values()
    assert len(state.leak) == 2


def test_a_factor_in_time_belongs_to_the_filter() -> None:
    _, found, _ = analysed(lambda s, x, v: 0.9 * v + x[:, :1] * s.w(x))
    (state,) = found.values()
    (source,) = (d for d in state.sources.values())
    assert len(source.factors) == 1 and state.by_example == {source.factors[0].atom}


def test_recurrent_input_is_held() -> None:
    def step(s: Any, x: Any, v: Any) -> Any:
        return 0.9 * v + s.w(jnp.concatenate([x[:, :1], jnp.tanh(v)], -1))

    _, found, _ = analysed(step)
    (state,) = found.values()
    assert sorted(source.cut for source in state.sources.values()) == [False, True]


@pytest.mark.parametrize("different", [MOST_LEAKS, MOST_LEAKS + 1])
def test_some_different_leaks(different: int) -> None:
    class Wide(Leaky):
        def __init__(self) -> None:
            leaks = jnp.linspace(0.1, 0.9, different)
            super().__init__(lambda s, x, v: leaks * v + s.w(x))
            self.w = bt.nn.Linear(4, different)
            self.v = brainstate.HiddenState(jnp.zeros((2, different)))

    minfo = bt.extract_module_info(Wide(), jnp.ones((2, 4)))
    found, refused = find_uniform(minfo, bt.find_hidden_groups_from_minfo(minfo)[1])
    assert len(found) == (different <= MOST_LEAKS)
    assert different <= MOST_LEAKS or "more than" in refused["v",]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda s, x, v: jnp.tanh(v) + s.w(x), r"its old value passes tanh at .*test_uniform"),
        (lambda s, x, v: s.w(x), "does not depend on its old value"),
        (lambda s, x, v: 0.9 * v + x[:, :3], "nothing but factors"),
        (lambda s, x, v: 0.9 * v[:, ::-1] + s.w(x), "moved to other positions"),
        (lambda s, x, v: x[:, :3] * v + s.w(x), "its old value passes mul"),
        (lambda s, x, v: v * v.mean() + s.w(x), "its old value passes"),
        (lambda s, x, v: 0.9 * v + s.w(x) + x[0, 0] * s.w(x), "two different factors in time"),
    ],
)
def test_what_is_not_uniform(step: Any, why: str) -> None:
    _, found, refused = analysed(step)
    assert not found
    assert re.search(why, refused["v",]), refused


def test_a_value_by_two_ways_with_one_factor() -> None:
    _, found, _ = analysed(lambda s, x, v: 0.9 * v + s.w(x) + jax.lax.neg(s.w(x)))
    assert len(found) == 1
