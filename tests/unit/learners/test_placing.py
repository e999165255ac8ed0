# SPDX-License-Identifier: Apache-2.0
"""Where states, traces and parameters belong, by what they mean."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

import braintrace as bt
from braintrace.learners import placing

MESH = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def learner(batch: int | None = 4, algorithm: str = "d_rtrl") -> Any:
    head = () if batch is None else (batch,)
    x = jnp.ones((*head, 3))
    return bt.compile(bt.nn.GRUCell(3, 4), algorithm, x, batch_size=batch)


def test_axes_are_found_by_meaning() -> None:
    own = learner()
    placing.place(own, MESH, "data", "model")
    assert own.param_states["Wr", "weight"].value["bias"].sharding.spec == jax.P("model")
    assert own.model.h.value.sharding.spec == jax.P("data", "model")
    assert own.traces[0].value["weight"].sharding.mesh == MESH  # the rest: tests/devices


def test_traces_of_influence_lie_as_the_states_do() -> None:
    own = learner(algorithm="rtrl")
    placing.place(own, MESH, ("data",), None)
    assert own.traces[0].value.sharding.spec == jax.P(None, "data", None)


@pytest.mark.parametrize(
    "given, error, message",
    [
        (("x", None, None), TypeError, "mesh must be a jax.sharding.Mesh, got str"),
        ((MESH, None, None), ValueError, "give the axis of the mesh for batch, for units"),
        ((MESH, "date", None), ValueError, r"no axis 'date'; its axes are 'data' \(1 device\)"),
        ((MESH, "data", "data"), ValueError, "batch and units are both"),
    ],
)
def test_a_mesh_or_an_axis_that_is_none_is_refused(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        placing.place(learner(), *given)


def test_what_cannot_be_divided_is_refused() -> None:
    three: Any = AbstractMesh((3,), ("data",))
    for axes, message in (
        ({"batch": ("data",), "units": ()}, r"divides 4 examples \(axis 0 of h, shape \(4, 4\)\)"),
        ({"batch": (), "units": ("data",)}, "among 3 devices, .* Take a multiple of 3 units"),
    ):
        places = placing.Places(learner(), three, **axes)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            places.spec(places.executor.groups[0])


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match="no axis of examples. Compile it with batch_size"):
        placing.place(learner(None), MESH, "data", None)
