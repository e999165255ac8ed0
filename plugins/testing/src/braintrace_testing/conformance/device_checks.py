# SPDX-License-Identifier: Apache-2.0
"""Several devices: where a result lies, and what varies between devices, is part of its type.

A mesh has as many devices as a case has examples. For types, it need not be there; numbers are
compared on as many devices as there are.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from braintrace.base.versions import is_float

from ..quick import jit
from .case import ConformanceCase, implementation, run_with
from .check import case_check, require, same

AXIS = "examples"


def _divisible(case: ConformanceCase) -> bool:
    return case.batched and case.has_x


def _operation(case: ConformanceCase, plain: bool) -> Any:
    """The operation, or its implementation in its place."""
    if not plain:
        return case.op
    return lambda *given: run_with(case, given, implementation)


def _with_gradients(function: Any, arguments: Any) -> Any:
    """The result, and the gradients of the floating-point arguments."""
    chosen = [i for i, v in enumerate(arguments) if is_float(v)]

    def run(*given: Any) -> Any:
        def loss(*given: Any) -> Any:
            y = function(*given)
            return (y**2).sum(), y

        gradients, y = jax.grad(loss, chosen, has_aux=True)(*given)
        return y, gradients

    return run


@case_check("devices.numbers", _divisible)
def numbers(case: ConformanceCase) -> None:
    """With the examples divided among devices, the numbers are those of one device."""
    arguments = case.arguments()
    expected = jit(_with_gradients(case.op, arguments))(*arguments)
    count = math.gcd(len(arguments[0]), jax.device_count())
    mesh = jax.make_mesh(
        (count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    x = jax.device_put(arguments[0], NamedSharding(mesh, jax.P(AXIS)))
    with jax.set_mesh(mesh):
        same(jit(_with_gradients(case.op, arguments))(x, *arguments[1:]), expected)


@case_check("devices.explicit_axes", _divisible)
def explicit_axes(case: ConformanceCase) -> None:
    """On a mesh with explicit axes, the result lies where the examples do, and gradients where
    their weights do, unless JAX refuses the implementation itself."""
    arguments = case.arguments()
    mesh = AbstractMesh((len(arguments[0]),), (AXIS,), axis_types=(AxisType.Explicit,))
    places = [jax.P(AXIS), *(jax.P() for _ in arguments[1:])]
    given = [
        jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=NamedSharding(mesh, place))
        for v, place in zip(arguments, places, strict=True)
    ]

    def lies(plain: bool, with_gradients: bool) -> Any:
        function = _operation(case, plain)
        run = _with_gradients(function, arguments) if with_gradients else function
        with jax.sharding.use_abstract_mesh(mesh):
            found = jax.eval_shape(run, *given)
        leaves = jax.tree.leaves(found)
        return [tuple(getattr(leaf.sharding, "spec", ()))[:1] for leaf in leaves]

    for with_gradients in (False, True):
        try:
            lies(True, with_gradients)
        except Exception:  # of JAX: an operation without a rule for explicit axes
            continue
        found = lies(False, with_gradients)
        require(found[0] == (AXIS,), f"the result lies at {found[0]}, expected ({AXIS!r},)")
        floats = [place for v, place in zip(arguments, places, strict=True) if is_float(v)]
        for i, (own, place) in enumerate(zip(found[1:], floats, strict=False)):
            right = own == (AXIS,) if place else own in ((), (None,))
            require(right, f"gradient {i} lies at {own}, its argument at {tuple(place)}")


@case_check("devices.shard_map", _divisible)
def shard_map(case: ConformanceCase) -> None:
    """Under ``jax.shard_map`` over the examples, the result varies between devices, and the
    gradients of weights are sums over them."""
    arguments = case.arguments()
    mesh = AbstractMesh((len(arguments[0]),), (AXIS,), axis_types=(AxisType.Auto,))
    places = (jax.P(AXIS), *(jax.P() for _ in arguments[1:]))
    floats = [place for v, place in zip(arguments, places, strict=True) if is_float(v)]

    def run(out: Any, function: Any) -> Any:
        inside = jax.shard_map(function, mesh=mesh, in_specs=places, out_specs=out)
        return jax.eval_shape(inside, *arguments)

    run((jax.P(AXIS), tuple(floats)), _with_gradients(case.op, arguments))
    try:
        run(jax.P(), case.op)
    except ValueError:
        return
    raise AssertionError("the result is said to be the same on every device")
