# SPDX-License-Identifier: Apache-2.0
"""Positions, mixed and kept, and how the output of an operation lies in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.executor.executor import Executor
from braintrace.executor.layout import Positions, added_up, numbered, numbers_along
from tests import zoo
from tests.zoo import HIDDEN, IN, weight


def group(shape: tuple[int, ...], states: int = 1) -> Any:
    axes = (-1, -1)
    return SimpleNamespace(
        varshape=shape, ndim=len(shape), num_state=states, index=0, state_axes=axes
    )


def test_indices_along_axes_are_flattened_in_their_order() -> None:
    assert numbers_along((2, 3, 4), (1,)).tolist() == [[[0], [1], [2]]]
    found = numbers_along((2, 3, 4), (2, 0))
    assert found.shape == (2, 1, 4) and found[1, 0, 3] == 3 * 2 + 1
    assert numbered((2, 3), (0,)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert numbered((2, 3), ()).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("mixed", [(), (1,), (2, 0), (0, 1, 2)])
def test_mixed_positions_count_as_states(mixed: tuple[int, ...]) -> None:
    positions = Positions(group((2, 3, 4), 2), mixed)
    kept = tuple(k for k in range(3) if k not in mixed)
    assert positions.kept == kept and positions.ndim == len(kept)
    assert positions.varshape == tuple((2, 3, 4)[k] for k in kept)
    assert positions.num_state == 2 * positions.num_mixed
    array = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 2, 3, 4)))
    joined = positions.joined(array, 1)
    assert joined.shape == (5, positions.num_state, *positions.varshape)
    assert jnp.array_equal(positions.parted(joined, 1), array)
    where = numbered((2, 3, 4), mixed)
    for place in ((0, 1, 2), (1, 2, 3)):
        state = 1 * positions.num_mixed + where[place]
        there = (3, state, *(place[k] for k in kept))
        assert joined[there] == array[(3, 1, *place)]


def test_members_are_stacked_with_their_states_first() -> None:
    positions = Positions(group((2, 3), 3))
    one, two = jnp.ones((2, 3)), jnp.arange(12.0).reshape(2, 3, 2)
    found = positions.stacked([one, two])
    assert found.shape == (3, 2, 3)
    assert jnp.array_equal(found[0], one) and jnp.array_equal(found[2], two[..., 1])


class Driven(zoo.Leaky):
    """``lay(y)`` is what reaches the state; the operation has as many outputs as ``w`` columns."""

    def __init__(self, columns: int, lay: Any) -> None:
        super().__init__()
        self.w, self.lay = weight(IN, columns), lay

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + self.lay(bt.matmul(x, self.w.value))
        return self.h.value


LAID: dict[str, tuple[int, Any, Any]] = {
    "the same": (HIDDEN, lambda y: y, ()),
    "broadcast": (1, lambda y: y, (HIDDEN,)),
    "a part of it": (HIDDEN + 2, lambda y: y[:, 1 : HIDDEN + 1], ()),
    "turned round": (HIDDEN, lambda y: y[:, ::-1], ()),
}


@pytest.mark.parametrize("name", LAID)
def test_arrays_of_positions_are_laid_out_as_the_output(name: str) -> None:
    columns, lay, extra = LAID[name]
    model = Driven(columns, lay)
    brainstate.nn.init_all_states(model, batch_size=2)
    (link,) = Executor(bt.compile_etrace_graph(model, jnp.ones((2, IN)))).links
    assert link.extra == extra
    array = np.random.default_rng(0).normal(size=(5, 2, HIDDEN))
    found = link.to_y(jnp.asarray(array), 1)
    assert found.shape == (5, *extra, 2, columns)
    where = np.asarray(lay(np.arange(float(columns))[None]))[0]  # of y, for each unit
    for unit in range(HIDDEN):
        k = 0 if extra else int(where[unit])
        there = found[:, unit, :, k] if extra else found[:, :, k]
        np.testing.assert_allclose(there, array[:, :, unit])
    summed = link.sum_to_y(found, 1)
    assert summed.shape == (5, 2, columns)
    expected = found.sum(1) if extra else found
    np.testing.assert_allclose(summed, expected)


def test_the_operation_of_a_link() -> None:
    model = Driven(HIDDEN, lambda y: y)
    brainstate.nn.init_all_states(model, batch_size=2)
    (link,) = Executor(bt.compile_etrace_graph(model, jnp.ones((2, IN)))).links
    operation = link.operation
    assert operation.traced == ("weight",) and operation.y_aval.shape == (2, HIDDEN)
    assert [a.shape for a in operation.operand_avals] == [(2, IN), (IN, HIDDEN)]
    assert operation.group is link.group.group


class Summed(zoo.Leaky):
    """Two terms of one sum, a third that is read twice, and one that is a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.u, self.t = weight(IN, HIDDEN), weight(IN, HIDDEN), weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        one, two, three, four = (bt.matmul(x, w.value) for w in (self.w, self.v, self.u, self.t))
        drive = jnp.tanh(one + (two + 1.0)) + three
        self.h.value = 0.5 * self.h.value + drive * jnp.sin(four) + 0.1 * three
        return self.h.value


def test_terms_of_one_sum_have_the_same_derivative() -> None:
    model = Summed()
    brainstate.nn.init_all_states(model, batch_size=2)
    executor = Executor(bt.compile_etrace_graph(model, jnp.ones((2, IN))))
    assert added_up(executor.links, executor.graph.module_info) == {0: 0, 1: 0, 2: 2, 3: 3}
    states = {s.path: s.state.value for s in executor.graph.module_info.slots}
    f = executor.jacobians_at(executor.run([np.ones((2, IN))], states)[2]).f
    assert jnp.array_equal(f[0], f[1]) and not jnp.allclose(f[0], f[2])
