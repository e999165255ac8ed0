# SPDX-License-Identifier: Apache-2.0
"""The method ``shard`` of a learner."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import braintrace as bt


def test_the_numbers_stay_and_so_do_the_places() -> None:
    x, mesh = jnp.ones((2, 3)), jax.make_mesh((1,), ("data",))
    learner = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    before = learner(x)
    learner.reset_state(model_states=True, batch_size=2)
    learner.shard(mesh, batch="data")
    place = learner.model.h.value.sharding
    assert jnp.allclose(learner(x), before, rtol=1e-12)
    learner.reset_state(model_states=True, batch_size=2)
    assert learner.model.h.value.sharding == place
    assert learner.traces[0].value["weight"].sharding.mesh == mesh


def test_a_learner_is_compiled_first() -> None:
    with pytest.raises(bt.CompilationError, match="call compile_graph"):
        bt.D_RTRL(bt.nn.GRUCell(3, 4)).shard(jax.make_mesh((1,), ("data",)), batch="data")
