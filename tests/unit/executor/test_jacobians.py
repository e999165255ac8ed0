# SPDX-License-Identifier: Apache-2.0
"""Jacobians of a step against those that JAX gives for all positions."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.executor.executor import Executor
from braintrace.executor.jacobians import takes_forward_mode
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

X = np.linspace(-1, 1, 2 * IN).reshape(2, IN)


class Mixing(zoo.Leaky):
    """h <- tanh(h M + x w) with a fixed product: positions are mixed."""

    matrix = np.linspace(-0.5, 0.5, HIDDEN**2).reshape(HIDDEN, HIDDEN)

    def step(self, h: Any, y: Any) -> Any:
        return jnp.tanh(h @ self.matrix + y)

    def update(self, x: Any) -> Any:
        self.h.value = self.step(self.h.value, bt.matmul(x, self.w.value))
        return self.h.value


class Broadcast(zoo.Leaky):
    """One number per example drives every unit."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 1)

    def step(self, h: Any, y: Any) -> Any:
        return jnp.tanh(0.5 * h + y * jnp.arange(1.0, HIDDEN + 1))

    update = Mixing.update


class TwoStates(zoo.Model):
    """i <- 0.7 i + y, v <- 0.9 v + i v."""

    names = ("i", "v")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.i.value = 0.7 * self.i.value + bt.matmul(x, self.w.value)
        self.v.value = 0.9 * self.v.value + self.i.value * self.v.value
        return self.v.value


def jacobians(model: Any, jacobians: str = "near", **options: Any) -> Any:
    brainstate.nn.init_all_states(model, batch_size=2)
    graph = bt.compile_etrace_graph(model, X, **options)
    executor = Executor(graph, jacobians)
    states = {s.path: s.state.value for s in graph.module_info.slots}
    _, new, values = executor.run([X], states)
    found = executor.jacobians_at(values)
    types = jax.tree.map(lambda v: (v.shape, v.dtype.name), executor.jacobian_types)
    assert jax.tree.map(lambda v: (v.shape, v.dtype.name), found) == types
    return executor, states, new, found


def whole(model: Any, states: Any) -> tuple[Any, Any]:
    """``dh / dh`` and ``dh / dy`` of one example each: [B, out, in]."""
    y = X @ states["w",]
    D, F = (jax.vmap(jax.jacobian(model.step, k))(states["h",], y) for k in (0, 1))
    return D, F


def test_the_true_diagonal_where_positions_are_mixed() -> None:
    model = Mixing()
    executor, states, _, found = jacobians(model)
    D, F = whole(model, states)
    eqns, cone = executor.graph.module_info.eqns, executor.graph.cones[0]
    assert not takes_forward_mode(eqns, cone, executor.links[0])  # one sweep gives D as well
    np.testing.assert_allclose(found.transition[0][0, 0], np.einsum("bii->bi", D), rtol=1e-10)
    np.testing.assert_allclose(found.f[0][0], np.einsum("bii->bi", F), rtol=1e-10)


def test_every_entry_within_a_group() -> None:
    model = Mixing()
    executor, states, _, found = jacobians(model, "whole", recurrence_scope="coupled")
    assert executor.groups[0].mixed == (1,) and executor.groups[0].num_state == HIDDEN
    D, F = whole(model, states)
    np.testing.assert_allclose(found.transition[0], np.moveaxis(D, 0, -1), rtol=1e-10)
    np.testing.assert_allclose(found.f[0], np.moveaxis(F, 0, 1), rtol=1e-10)
    assert executor.passing(0) == ((True,) * HIDDEN,) * HIDDEN
    assert executor.driving(0) == (True,) * HIDDEN


def test_an_output_that_is_broadcast_takes_forward_mode() -> None:
    model = Broadcast()
    executor, states, _, found = jacobians(model)
    (link,) = executor.links
    eqns, cone = executor.graph.module_info.eqns, executor.graph.cones[0]
    assert link.extra == (HIDDEN,) and takes_forward_mode(eqns, cone, link)
    _, F = whole(model, states)  # [B, out, 1]
    expected = np.moveaxis(F, 1, 0)[None]  # [S, E, B, 1]
    np.testing.assert_allclose(found.f[0], expected, rtol=1e-10)


def test_a_surrogate_without_forward_mode_is_pulled_back() -> None:
    class Spiking(Broadcast):
        def step(self, h: Any, y: Any) -> Any:
            return zoo.spike_vjp(super().step(h, y))

    executor, states, _, found = jacobians(Spiking())
    (link,) = executor.links
    eqns, cone = executor.graph.module_info.eqns, executor.graph.cones[0]
    assert not takes_forward_mode(eqns, cone, link)
    y = X @ states["w",]
    gains = np.arange(1.0, HIDDEN + 1)
    v = np.tanh(0.5 * np.asarray(states["h",]) + y * gains)
    slope = 0.7 * np.maximum(0, 1 - np.abs(v)) * (1 - v**2) * gains
    np.testing.assert_allclose(found.f[0][0, ..., 0], slope.T, rtol=1e-10)


def test_states_of_one_position() -> None:
    _, states, new, found = jacobians(TwoStates())
    i, v = new["i",], states["v",]
    D = np.array([[np.full_like(i, 0.7), np.zeros_like(i)], [0.7 * v, 0.9 + i]])
    np.testing.assert_allclose(found.transition[0], D, rtol=1e-10)
    np.testing.assert_allclose(found.f[0], np.stack([np.ones_like(i), v]), rtol=1e-10)


def test_a_group_that_nothing_drives_has_no_jacobians() -> None:
    class Driven(zoo.Model):
        names = ("a", "b")

        def __init__(self) -> None:
            super().__init__()
            self.w = weight(IN, HIDDEN)

        def update(self, x: Any) -> Any:
            self.a.value = 0.5 * self.a.value + bt.matmul(x, self.w.value)
            self.b.value = 0.5 * self.b.value + 1.0
            return self.a.value + self.b.value

    executor, _, _, found = jacobians(Driven())
    assert [d is None for d in found.transition] == [False, True]
    assert len(executor.driven) == 1 and found.of(executor.links[0])[0] is found.x[0]


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_what_is_structurally_zero_is_none(scope: str) -> None:
    class Memoryless(zoo.Leaky):
        def update(self, x: Any) -> Any:
            self.h.value = jnp.tanh(bt.matmul(x, self.w.value))
            return self.h.value

    *_, found = jacobians(Memoryless(), recurrence_scope=scope)
    assert found.transition == (None,)


class Many(zoo.Model):
    """A ring of states, in states of their own and in one of several, with one position each."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.count = states
        self.w = weight(IN, HIDDEN)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        shape = (batch_size, HIDDEN)
        for k in range(self.count - 2):
            setattr(self, f"h{k}", brainstate.HiddenState(jnp.full(shape, 0.1 * k)))
        self.two = brainstate.HiddenGroupState(jnp.full((*shape, 2), 0.2))

    def step(self, olds: Any, y: Any) -> Any:
        *single, two = olds
        every = [*single, two[..., 0], two[..., 1]]
        new = [jnp.tanh(0.5 * h + every[k - 1] * h + y) for k, h in enumerate(every)]
        return [*new[:-2], jnp.stack(new[-2:], -1)]

    def update(self, x: Any) -> Any:
        states = [*(getattr(self, f"h{k}") for k in range(self.count - 2)), self.two]
        news = self.step([state.value for state in states], bt.matmul(x, self.w.value))
        for state, new in zip(states, news, strict=True):
            state.value = new
        return states[0].value


def test_many_states_are_pulled_back_together() -> None:
    """``D`` and ``f`` of six states, more than are written out one by one."""
    model = Many(6)
    brainstate.nn.init_all_states(model, batch_size=2)
    executor = bt.ETraceGraphExecutor(model)
    executor.compile_graph(X)
    step = executor.compiled
    states = {slot.path: slot.state.value for slot in step.graph.module_info.slots}
    _, _, values = step.run([X], states)
    found = step.jacobians_at(values)
    (group,) = step.groups
    olds = [state.value for state in group.group.hidden_states]
    y = X @ model.w.value

    def at(b: int, p: int) -> Any:
        """All new states of one position by the old ones of it, and by ``y``."""

        def new(old: Any, y_one: Any) -> Any:
            single = [jnp.full((1, 1), old[k]) for k in range(4)]
            result = model.step([*single, old[None, None, 4:]], y_one[None, None])
            return jnp.concatenate([v.reshape(-1) for v in result])

        old = jnp.concatenate([v[b, p].reshape(-1) for v in olds])
        return jax.jacobian(new, (0, 1))(old, y[b, p])

    for b, p in ((0, 0), (1, HIDDEN - 1)):
        of_old, of_y = at(b, p)
        np.testing.assert_allclose(found.transition[0][:, :, b, p], of_old, atol=1e-12)
        np.testing.assert_allclose(found.f[0][:, b, p], of_y, atol=1e-12)


def equations(jaxpr: Any) -> int:
    inner = (e for eqn in jaxpr.eqns for e in versions.inner_jaxprs(eqn))
    return len(jaxpr.eqns) + sum(map(equations, inner))


def test_the_program_of_many_states_grows_as_the_step_does() -> None:
    """A pull-back for each state would be a program of the square of their number."""

    def size(states: int) -> tuple[int, int]:
        model, xs = Many(states), jnp.stack([X] * 4)
        learner = bt.compile(model, "d_rtrl", X, batch_size=2)

        def gradient(xs: Any) -> Any:
            return learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), block_size=2)

        program, _ = brainstate.transform.make_jaxpr(gradient)(xs)
        return len(learner.graph.module_info.eqns), equations(program)

    (few, small), (many, large) = size(8), size(32)
    assert large / small < many / few < 4.2
