# SPDX-License-Identifier: Apache-2.0
"""Which filters a step needs."""

from __future__ import annotations

import jax.numpy as jnp

from braintrace.compiler.uniform.moving import Moving
from tests.unit.compiler.uniform.leaky import analysed


def test_a_filter_for_each_source_and_constant_of_each_leak() -> None:
    leaks = jnp.asarray([0.5, 0.9, 0.9])
    minfo, found, _ = analysed(lambda s, x, v: leaks * v + s.w(x))
    filters = Moving(minfo, found).filters
    shapes = {(len(key), one.type.shape, one.credit) for (_, key), one in filters.items()}
    assert shapes == {(2, (2, 4), False), (2, (), False)}
    assert sorted(key[-1] for _, key in filters) == [0, 0, 1, 1]


def test_states_that_keep_traces_have_filters_of_what_has_a_derivative_alone() -> None:
    minfo, found, _ = analysed(lambda s, x, v: 0.9 * v + s.w(x))
    assert Moving(minfo, found).filters
    assert not Moving(minfo, found, keeps_traces=True).filters
