# SPDX-License-Identifier: Apache-2.0
"""The JAX contract: an operation is an ordinary JAX function, and stays visible as a primitive."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base.versions import is_float

from .case import ConformanceCase, equation_of, implementation, normal, primitives_in, run_with
from .check import case_check, close, require, same

MAPPED = 3  # how many x are mapped over
STEP = 1e-5  # of the central difference


@case_check("jax.binds_its_primitive")
def binds_its_primitive(case: ConformanceCase) -> None:
    """``op`` binds the primitive of the case exactly once, and no other ETP primitive."""
    names = [primitive.name for primitive in primitives_in(case.op, *case.arguments())]
    require(names == [case.spec.name], f"binds {names}, expected [{case.spec.name!r}]")
    equation_of(case)


@case_check("jax.abstract_evaluation")
def abstract_evaluation(case: ConformanceCase) -> None:
    """Shape and dtype of the result are known without values, and are those of the result."""
    arguments = case.arguments()
    shape = jax.eval_shape(case.op, *arguments)
    y = case.op(*arguments)
    found = (y.shape, y.dtype)
    require(found == (shape.shape, shape.dtype), f"{found} differs from abstract {shape}")
    require(is_float(y), f"the result has dtype {y.dtype}, which carries no derivative")


@case_check("jax.jit")
def jit(case: ConformanceCase) -> None:
    """``jit`` of the operation gives the same numbers, at each call."""
    arguments = case.arguments()
    expected, compiled = case.op(*arguments), jax.jit(case.op)
    for _ in range(2):
        same(compiled(*arguments), expected)


@case_check("jax.scan")
def scan(case: ConformanceCase) -> None:
    """Inside ``scan``, at each step and in two programs, it gives the same numbers."""
    arguments = case.arguments()
    expected = case.op(*arguments)
    for length in (2, 3):
        _, ys = jax.lax.scan(lambda c, _: (c, case.op(*arguments)), 0, length=length)
        same(ys, jnp.stack([expected] * length))


@case_check("jax.checkpoint")
def checkpoint(case: ConformanceCase) -> None:
    """``checkpoint`` changes neither the result nor its gradient."""
    arguments = case.arguments()
    same(_gradient(jax.checkpoint(case.op), arguments), _gradient(case.op, arguments))


def _gradient(fun: Any, arguments: tuple[Any, ...]) -> Any:
    """Value and gradient of a random combination of the results."""
    chosen = [i for i, v in enumerate(arguments) if is_float(v)]
    shape = jax.eval_shape(fun, *arguments).shape

    def loss(*values: Any) -> Any:
        full = list(arguments)
        for i, value in zip(chosen, values, strict=True):
            full[i] = value
        return jnp.vdot(normal(1, shape), fun(*full))

    return jax.value_and_grad(loss, tuple(range(len(chosen))))(*(arguments[i] for i in chosen))


@case_check("jax.grad")
def grad(case: ConformanceCase) -> None:
    """The gradient agrees with a central difference along random directions."""
    arguments = case.arguments()
    floats = [v for v in arguments if is_float(v)]
    _, gradient = _gradient(case.op, arguments)
    for seed in range(3):
        ways = [normal(5 + seed + i, v.shape) for i, v in enumerate(floats)]
        slope = sum(jnp.vdot(g, w) for g, w in zip(gradient, ways, strict=True))
        ends = [_along(case, arguments, ways, size) for size in (STEP, -STEP)]
        size = sum(jnp.linalg.norm(g) * jnp.linalg.norm(w) for g, w in zip(gradient, ways))  # noqa: B905
        error = abs((ends[0] - ends[1]) / (2 * STEP) - slope) / size
        require(size > 0 and error < 1e-6, f"relative error {float(error):.1e} of the gradient")


def _along(case: ConformanceCase, arguments: Any, ways: list[Any], size: float) -> Any:
    steps = iter(ways)
    moved = [v + size * next(steps) if is_float(v) else v for v in arguments]
    return _gradient(case.op, tuple(moved))[0]


@case_check("jax.jvp")
def jvp(case: ConformanceCase) -> None:
    """Forward mode and reverse mode give the same derivative."""
    arguments = case.arguments()
    tangents = [_tangent(i, v) for i, v in enumerate(arguments)]
    y, y_dot = jax.jvp(case.op, arguments, tuple(tangents))
    same(y, case.op(*arguments))
    _, gradient = _gradient(case.op, arguments)
    moving = [t for t, v in zip(tangents, arguments, strict=True) if is_float(v)]
    expected = sum(jnp.vdot(g, t) for g, t in zip(gradient, moving, strict=True))
    close(jnp.vdot(normal(1, y.shape), y_dot), expected)


def _tangent(seed: int, value: Any) -> Any:
    if is_float(value):
        return normal(seed, value.shape, value.dtype)
    return np.zeros(value.shape, jax.dtypes.float0)


# --- vmap ------------------------------------------------------------------------------------


def _has_x(case: ConformanceCase) -> bool:
    return case.has_x


def _mapped(case: ConformanceCase) -> tuple[Any, tuple[Any, ...]]:
    axes = (0, *(None for _ in case.weights()))
    return jax.vmap(case.op, in_axes=axes), (case.inputs(MAPPED), *case.weights())


@case_check("jax.vmap", _has_x)
def vmap(case: ConformanceCase) -> None:
    """``vmap`` over ``x`` gives what a loop over ``x`` gives."""
    mapped, arguments = _mapped(case)
    xs, weights = arguments[0], arguments[1:]
    same(mapped(*arguments), jnp.stack([case.op(x, *weights) for x in xs]))


@case_check("jax.vmap_keeps_the_primitive", _has_x)
def vmap_keeps_the_primitive(case: ConformanceCase) -> None:
    """``vmap`` over ``x`` binds a batched ETP primitive: the compiler still sees the operation."""
    mapped, arguments = _mapped(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = primitives_in(mapped, *arguments)
    names = [primitive.name for primitive in found]
    require(len(found) == 1, f"binds {names}, expected one ETP primitive")
    require(found[0].spec.batched, f"binds {names[0]!r}, which is not batched")


@case_check("jax.vmap_over_weights")
def vmap_over_weights(case: ConformanceCase) -> None:
    """``vmap`` over a weight gives what a loop gives (as plain JAX operations, with a warning)."""
    arguments = list(case.arguments())
    i = int(case.has_x)
    many = jnp.stack([arguments[i], 0.5 * arguments[i]])
    axes = tuple(0 if k == i else None for k in range(len(arguments)))

    def with_weight(value: Any) -> list[Any]:
        return [*arguments[:i], value, *arguments[i + 1 :]]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = jax.vmap(case.op, in_axes=axes)(*with_weight(many))
    same(found, jnp.stack([run_with(case, with_weight(w), implementation) for w in many]))
