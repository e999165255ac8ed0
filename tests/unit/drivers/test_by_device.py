# SPDX-License-Identifier: Apache-2.0
"""What a device computes by itself inside of ``jax.shard_map``; an axis of one has types, too."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

import braintrace as bt
from braintrace.base.errors import NotSupportedError
from braintrace.base.versions import varying_axes
from braintrace.drivers import by_device
from tests import zoo

MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
X, W = jnp.arange(6.0).reshape(2, 3), jnp.ones(3)
DATA, SAME = jax.P("data"), jax.P()


def mapped(run: Any, out: Any) -> Any:
    return jax.shard_map(run, mesh=MESH, in_specs=(DATA, SAME), out_specs=out)(X, W)


def scanned(x: Any, w: Any) -> Any:
    """A loop whose start varies nowhere, which JAX refuses where something varies."""
    total, _ = jax.lax.scan(lambda c, row: (c + jnp.tanh(row @ w), None), jnp.zeros(()), x)
    return total, w.sum(), jnp.arange(2)


def test_a_function_and_its_gradient() -> None:
    with pytest.raises(TypeError, match="carry"):
        mapped(lambda x, w: scanned(x, w)[0], DATA)

    def loss(w: Any, x: Any) -> Any:
        total, _, numbers = by_device.alone(scanned, (x, w))
        return total * numbers[1], total

    def run(x: Any, w: Any) -> Any:
        grad, total = jax.grad(loss, has_aux=True)(w, x)
        assert varying_axes(total) == {"data"} and not varying_axes(grad)  # a sum over devices
        return grad

    expected = jax.grad(lambda w: scanned(X, w)[0])(W)
    assert mapped(run, SAME).tolist() == pytest.approx(expected.tolist())
    assert float(by_device.alone(scanned, (X, W))[1]) == 3.0  # nothing varies


def test_states_vary_as_what_they_are_made_of() -> None:
    state, count = brainstate.ShortTermState(W), brainstate.ShortTermState(jnp.zeros((), int))

    def step(x: Any, w: Any) -> Any:
        state.value, count.value = state.value + x[0], count.value + 1
        return scanned(x, w)[0]

    def run(x: Any, w: Any) -> Any:
        with brainstate.StateTraceStack():
            found = by_device.alone_with_states(step, (x, w))
            kinds = [varying_axes(s.value) for s in (state, count)]
            state.restore_value(W), count.restore_value(jnp.zeros((), int))
        assert kinds == [{"data"}, frozenset()] and varying_axes(found) == {"data"}
        return found[None]

    assert float(mapped(run, DATA)[0]) == pytest.approx(float(scanned(X, W)[0]))


class Counting(zoo.Leaky):
    """Counts its steps, and how often its first unit is positive."""

    def init_state(self, batch_size: int) -> None:
        super().init_state(batch_size)
        self.steps = brainstate.ShortTermState(jnp.zeros((), int))
        self.often = brainstate.ShortTermState(jnp.zeros((), int))

    def update(self, x: Any) -> Any:
        y = super().update(x)
        self.steps.value = self.steps.value + 1
        self.often.value = self.often.value + (y[:, 0] > 0).sum()
        return y


def test_a_count_that_no_example_reaches_stays_in_a_loop_as_it_is() -> None:
    learner = bt.compile(
        Counting(), "pp_prop", jnp.ones((2, zoo.IN)), batch_size=2, decay_or_rank=0.9
    )
    model = learner.model

    def run(x: Any, w: Any) -> Any:
        with brainstate.StateTraceStack() as trace:
            by_device.vary_as(learner, x)
            kinds = [varying_axes(s.value) for s in (model.steps, model.often, model.h)]
            kinds += [varying_axes(jax.tree.leaves(trace.value)[0]) for trace in learner.traces[:2]]
            trace.recovery_original_values()
        assert kinds == [frozenset(), {"data"}, {"data"}, frozenset(), {"data"}]
        return x

    mapped(run, DATA)


def test_what_devices_tell_one_another_in_a_step() -> None:
    def talks(x: Any, w: Any) -> Any:
        return jax.lax.psum(x @ w, "data")

    with pytest.raises(NotSupportedError, match=r"psum at .*test_by_device.* along \['data'\]"):
        mapped(lambda x, w: by_device.alone(talks, (x, w)), DATA)

    def numbered(x: Any, w: Any) -> Any:  # which a device may know
        return w + jax.lax.axis_index("data")

    def run(x: Any, w: Any) -> Any:
        found = by_device.alone_with_states(numbered, (x, w))
        assert varying_axes(found) == {"data"}
        return found

    assert mapped(run, DATA).tolist() == W.tolist()
