# SPDX-License-Identifier: Apache-2.0
"""Equations that move no numbers: to devices, shardings, layouts, behind barriers, under names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.experimental.layout as layouts
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

B, T = 2, 4
SHARDING = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("devices",)), PartitionSpec())
LAYOUT = getattr(layouts, "DeviceLocalLayout", None) or layouts.Layout
CARRIED: dict[str, Callable[[Any], Any]] = {
    "device_put": jax.device_put,
    "to a device": partial(jax.device_put, device=jax.devices()[0]),
    "together": lambda v: jax.device_put((v, v[..., ::-1]))[0],
    "sharding": lambda v: jax.lax.with_sharding_constraint(v, SHARDING),
    "reshard": lambda v: jax.sharding.reshard(v, SHARDING),
    "barrier": lambda v: jax.lax.optimization_barrier((v, v.sum()))[0],
    "layout": lambda v: layouts.with_layout_constraint(v, LAYOUT(tuple(range(v.ndim)))),
    "name": lambda v: checkpoint_name(v, "kept"),
    "donating jit": jax.jit(lambda v: v.copy(), donate_argnums=0),
}


class Carrying(zoo.Model):
    """Whatever is computed is carried: the old state, the weight, a product, the new state."""

    def __init__(self, carry: Callable[[Any], Any] = lambda v: v, vmap: bool = False) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.carry, self.vmap = carry, vmap
        self.w, self.out = weight(IN, HIDDEN), weight(HIDDEN, 2)

    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros((HIDDEN,) if self.vmap else (batch_size, HIDDEN))

    def update(self, x: Any) -> Any:
        carry = self.carry
        y = carry(bt.matmul(carry(x), carry(self.w.value)))
        self.h.value = carry(jnp.tanh(0.7 * carry(self.h.value) + y))
        return carry(self.h.value) @ self.out.value


def trained(model: Any, **options: Any) -> tuple[Any, Any]:
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(T, B, IN)))
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=B, **options)
    grads = learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).sum(), block_size=3)
    return grads, learner


@pytest.mark.parametrize("how", CARRIED)
def test_what_moves_no_numbers_is_position_wise(how: str) -> None:
    """The trace has its usual size, and nothing is said of positions or states that are mixed."""
    want, plain = trained(Carrying())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(mix|not_position).*")
        found, learner = trained(Carrying(CARRIED[how]))
    assert_tree_close(found, want, 1e-12)
    assert jax.tree.map(jnp.shape, learner.read_traces()) == jax.tree.map(
        jnp.shape, plain.read_traces()
    )
    said = {record.kind.value for record in learner.graph.diagnostics}
    assert not said & {"transition_not_position_wise", "tail_not_position_wise"}


@pytest.mark.parametrize("how", ["device_put", "barrier", "name"])
def test_the_same_under_vmap(how: str) -> None:
    want, _ = trained(Carrying(vmap=True), vmap=True)
    found, _ = trained(Carrying(CARRIED[how], vmap=True), vmap=True)
    assert_tree_close(found, want, 1e-12)


def test_a_parameter_that_is_carried_with_an_input_does_not_depend_on_it() -> None:
    class Together(Carrying):
        def update(self, x: Any) -> Any:
            x, w = jax.lax.optimization_barrier((x, self.w.value))
            w, old = jax.device_put((w, self.h.value))
            self.h.value = jnp.tanh(0.7 * old + bt.matmul(x, w))
            return self.h.value @ self.out.value

    want, _ = trained(Carrying())
    found, learner = trained(Together())
    assert_tree_close(found, want, 1e-12)
    assert learner.graph.coverage()["w",] == "trace"


def test_a_leak_behind_one_is_uniform() -> None:
    """A leaky readout whose state is put somewhere: credit passes as it does otherwise."""

    class Leaky(Carrying):
        names = ("h", "v")

        def update(self, x: Any) -> Any:
            carry = self.carry
            self.h.value = jnp.tanh(0.7 * self.h.value + bt.matmul(x, self.w.value))
            drive = carry(bt.matmul(carry(self.h.value), self.out.value))
            self.v.value = carry(0.9 * carry(self.v.value) + carry(drive))
            return self.v.value

        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((batch_size, HIDDEN))

        def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
            super().init_state(batch_size)
            self.v = brainstate.HiddenState(jnp.zeros((batch_size, 2)))

    want, plain = trained(Leaky(), downstream="linear")
    for how in ("device_put", "barrier", "sharding"):
        found, learner = trained(Leaky(CARRIED[how]), downstream="linear")
        assert [*learner.graph.uniform] == [*plain.graph.uniform] == [("v",)]
        assert_tree_close(found, want, 1e-12)
