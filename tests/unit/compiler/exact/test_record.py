# SPDX-License-Identifier: Apache-2.0
"""What is recorded of small groups above others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.compiler.exact.record import Member, members_of, values_of
from tests.unit.compiler.exact.layers import Gated, graph_of


@pytest.mark.parametrize(("shape", "axis"), [((2, 3), -1), ((2, 3, 4), -1), ((4, 2, 3), 0)])
def test_entries_of_a_state_and_back(shape: Any, axis: int) -> None:
    new = SimpleNamespace(aval=SimpleNamespace(shape=shape, ndim=len(shape)))
    group: Any = SimpleNamespace(
        hidden_outvars=(new,), state_axes=(axis,), ndim=2, varshape=(2, 3), hidden_paths=(("h",),)
    )
    member = Member(group, 0)
    value = jnp.arange(np.prod(shape)).reshape(shape)
    entries = member.entries(value, 2)
    assert entries.shape == (2, np.prod(shape) // 2)
    assert (member.laid(entries) == value).all()
    assert member.summed(value[None]).shape == (1, 2, 3)
    assert member.entries(value[None], 2, 1).shape == (1, *entries.shape)


def test_what_there_is() -> None:
    graph = graph_of(Gated(3, 4), Gated(4, 3))
    exact = graph.exact
    assert [*exact.small] == [("layers", 1, "v")]
    assert [f.shape for f in exact.filters.values()] == [(3, 2, 4)]
    assert values_of(members_of(exact.groups[1]), by_example=True) == 3
    ((below, above, count, before),) = exact.costs()
    assert (below, above) == ((("layers", 0, "v"),), (("layers", 1, "v"),))
    assert (count, before) == (3, 1)
    values = {slot.path: slot.state.value for slot in graph.executed.module_info.slots}

    def read(q: Any) -> Any:
        found = exact.credited({**values, ("<exact>", "0"): q})
        return found["layers", 1, "v"].sum()

    assert (jax.grad(read)(jnp.zeros((3, 2, 4))) == 1).all()
