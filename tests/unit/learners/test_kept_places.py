# SPDX-License-Identifier: Apache-2.0
"""What is set to a start lies where it lay."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp

from braintrace.learners.kept_places import as_before, started

MESH = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
PLACE = jax.NamedSharding(MESH, jax.P("data"))


def test_what_is_made_lies_like_what_was_there() -> None:
    there = jax.device_put(jnp.ones(2), PLACE), jnp.ones(3)
    made = started(lambda: (jnp.zeros(2), jnp.zeros(3)), there)
    assert made[0].sharding == PLACE and made[1].sharding != PLACE
    assert started(lambda: [jnp.zeros(2)], there)[0].sharding != PLACE  # another structure
    assert started(lambda: jnp.zeros(3), there[1]).tolist() == [0.0] * 3


def test_states_are_put_back_to_their_places() -> None:
    a, b = brainstate.ShortTermState(jnp.zeros(2)), brainstate.ShortTermState(jnp.zeros(3))
    as_before({("a",): jax.device_put(jnp.ones(2), PLACE)}, {("a",): a, ("b",): b})
    assert a.value.sharding == PLACE and a.value.tolist() == [0.0, 0.0]
    assert b.value.sharding != PLACE
