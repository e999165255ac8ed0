# SPDX-License-Identifier: Apache-2.0
"""From a state's new value back to its old one."""

from __future__ import annotations

import re
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.uniform.descent import MOST_LEAKS
from braintrace.compiler.uniform.find import find_uniform
from tests.unit.compiler.uniform.leaky import Leaky, analysed


def test_a_leak_and_its_driver() -> None:
    minfo, found, _ = analysed(lambda s, x, v: 0.9 * v + 0.1 * s.w(x))
    (state,) = found.values()
    (source,) = state.sources.values()
    assert source.atom is minfo.jaxpr.invars[0] and not source.cut and source.factors == ()
    assert [len(factors) for factors in state.leak] == [1]
    assert len(state.affine) == 1  # the operation adds its bias


def test_a_leak_of_two_terms() -> None:
    _, found, _ = analysed(lambda s, x, v: v + (s.w(x) - v) / 5.0)
    (state,) = found.values()
    assert len(state.leak) == 2


def test_a_factor_in_time_belongs_to_the_filter() -> None:
    _, found, _ = analysed(lambda s, x, v: 0.9 * v + x[:, :1] * s.w(x))
    (state,) = found.values()
    (source,) = (d for d in state.sources.values())
    assert len(source.factors) == 1 and state.by_example == {source.factors[0].atom}


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
        (lambda s, x, v: jnp.tanh(v) + s.w(x), r"its old value passes tanh at .*test_descent"),
        (lambda s, x, v: s.w(x), "does not depend on its old value"),
        (lambda s, x, v: 0.9 * v + x[:, :3], "nothing but factors"),
        (
            lambda s, x, v: 0.9 * v + bt.matmul(x, s.w.weight.value["weight"] * (x[0, 0] > 0)),
            r"the weight of \S+ at .*test_descent.* is chosen or masked by inputs or states",
        ),
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
