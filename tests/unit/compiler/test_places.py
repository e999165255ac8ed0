# SPDX-License-Identifier: Apache-2.0
"""Types without the place of arrays; an axis of one device already has a type."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from braintrace.compiler import places

MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
X = jnp.ones((4, 3))


def placed(value: Any, *spec: Any) -> Any:
    return jax.device_put(value, jax.NamedSharding(MESH, jax.P(*spec)))


def test_an_explicit_mesh_is_set_or_that_of_an_array() -> None:
    assert places.explicit_mesh((X, None, 1.0)) is None
    assert places.explicit_mesh([placed(X, "data")]).axis_names == ("data",)
    with jax.set_mesh(MESH):
        assert places.explicit_mesh().explicit_axes == ("data",)


def test_what_is_traced_sees_types_without_places() -> None:
    state, seen = brainstate.ShortTermState(placed(X, "data")), []
    for args in ((X,), (placed(X, "data"),)):
        places.traced_without_place(lambda x: seen.append((x, state.value)), args)
    assert seen[0][0] is X and isinstance(seen[1][1], jax.ShapeDtypeStruct)
    assert jax.typeof(state.value).sharding.spec == jax.P("data", None)


def test_what_is_traced_inside_of_shard_map_varies_nowhere() -> None:
    seen: list[Any] = []

    def inside(x: Any) -> Any:
        places.traced_without_place(lambda x: seen.append(x), (x,))
        return x

    jax.shard_map(inside, mesh=MESH, in_specs=jax.P("data"), out_specs=jax.P("data"))(
        placed(X, "data")
    )
    assert isinstance(seen[0], jax.ShapeDtypeStruct) and seen[0].shape == X.shape


def test_states_that_are_made_meanwhile_are_those_of_the_caller() -> None:
    with places.states_without_place(MESH.abstract_mesh):
        made = brainstate.HiddenState(jnp.zeros(3))
    assert made.stack_level == 1
    places.made_here([made])
    assert made.stack_level == 0
