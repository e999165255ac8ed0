# SPDX-License-Identifier: Apache-2.0
"""The JAX contract: an operation is an ordinary JAX function, and stays visible as a primitive."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base.errors import CompilationWarning
from braintrace.base.versions import is_float

from .case import (
    ConformanceCase,
    equation_of,
    etp_equations,
    implementation,
    normal,
    once,
    run_with,
)
from .check import case_check, close, require, same
from .variants import SCALES, alike, with_zeros_and_spikes

MAPPED = 3  # how many x are mapped over
STEP = 1e-5  # of the central difference


@case_check("jax.binds_its_primitive")
def binds_its_primitive(case: ConformanceCase) -> None:
    """``op`` binds the primitive of the case exactly once, and no other ETP primitive."""
    names = [eqn.primitive.name for eqn in etp_equations(case.op, *case.arguments())]
    require(names == [case.spec.name], f"binds {names}, expected [{case.spec.name!r}]")
    equation_of(case)


@case_check("jax.abstract_evaluation")
def abstract_evaluation(case: ConformanceCase) -> None:
    """Shape and dtype of the result are known without values, and are those of the result."""
    shape = jax.eval_shape(case.op, *case.arguments())
    y = _result(case)
    found = (y.shape, y.dtype)
    require(found == (shape.shape, shape.dtype), f"{found} differs from abstract {shape}")
    require(is_float(y), f"the result has dtype {y.dtype}, which carries no derivative")


@once
def _result(case: ConformanceCase) -> Any:
    return case.op(*case.arguments())


@case_check("jax.jit")
def jit(case: ConformanceCase) -> None:
    """``jit`` of the operation gives the same numbers, at each call."""
    compiled = jax.jit(case.op)
    for _ in range(2):
        same(compiled(*case.arguments()), _result(case))


@case_check("jax.scan")
def scan(case: ConformanceCase) -> None:
    """Inside ``scan``, at each step and in two programs, it gives the same numbers."""
    arguments = case.arguments()
    for length in (2, 3):
        _, ys = jax.lax.scan(lambda c, _: (c, case.op(*arguments)), 0, length=length)
        same(ys, np.stack([_result(case)] * length))


@case_check("jax.checkpoint")
def checkpoint(case: ConformanceCase) -> None:
    """``checkpoint`` changes neither the result nor its gradient."""
    arguments = case.arguments()
    same(_gradient_of(jax.checkpoint(case.op), arguments)(*arguments), _gradient(case)(*arguments))


@once
def _gradient(case: ConformanceCase) -> Any:
    return _gradient_of(case.op, case.arguments())


def _gradient_of(fun: Any, arguments: tuple[Any, ...]) -> Any:
    """A compiled function of such arguments and a scale: the result, and the gradient of a random
    sum of it, times the scale."""
    shape = jax.eval_shape(fun, *arguments).shape
    chosen = [i for i, v in enumerate(arguments) if is_float(v)]

    @jax.jit
    def run(scale: Any, *given: Any) -> Any:
        def loss(*given: Any) -> Any:
            y = fun(*given)
            return jnp.vdot(scale * normal(1, shape), y), y

        gradient, y = jax.grad(loss, chosen, has_aux=True)(*given)
        return y, gradient

    return lambda *given, scale=1.0: run(scale, *given)


@case_check("jax.grad")
def grad(case: ConformanceCase) -> None:
    """The gradient is what central differences give, in three directions, and as much smaller or
    larger for cotangents times 1e-8 and 1e4."""
    arguments = case.arguments()
    gradient = _gradient(case)(*arguments)[1]
    for scale in SCALES:
        scaled = jax.tree.map(lambda v, by=scale: by * np.asarray(v), gradient)
        alike(f"cotangents times {scale:g}", _gradient(case)(*arguments, scale=scale)[1], scaled)
    for seed in range(3):
        steps = [
            normal(5 + seed + i, v.shape) if is_float(v) else 0 for i, v in enumerate(arguments)
        ]
        ways = [w for w, v in zip(steps, arguments, strict=True) if is_float(v)]
        slope, sizes = 0.0, 0.0
        for g, w in zip(gradient, ways, strict=True):
            slope += float(np.vdot(g, w))
            sizes += float(np.linalg.norm(g) * np.linalg.norm(w))
        ends = [_moved(case, arguments, steps, size) for size in (STEP, -STEP)]
        require(sizes > 0, "the gradient is zero")
        error = abs((ends[0] - ends[1]) / (2 * STEP) - slope) / sizes
        require(error < 1e-6, f"relative error {error:.1e} of the gradient")


def _moved(case: ConformanceCase, arguments: Any, steps: list[Any], size: float) -> Any:
    """The random sum of the result, some way off."""
    moved = [
        np.asarray(v) + size * s if is_float(v) else v
        for v, s in zip(arguments, steps, strict=True)
    ]
    y = _gradient(case)(*moved)[0]
    return np.vdot(normal(1, y.shape), y)


@case_check("jax.derivatives_at_zeros_and_spikes")
def derivatives_at_zeros_and_spikes(case: ConformanceCase) -> None:
    """Where inputs are zeros and spikes and the result is a number, its derivatives are, too."""
    arguments = case.arguments()
    if not (case.has_x and is_float(arguments[0])):
        return
    x = np.asarray(arguments[0])
    for name, given in (("zeros", 0 * x), ("zeros and spikes", with_zeros_and_spikes(x))):
        y, gradient = _gradient(case)(given, *arguments[1:])
        if np.isfinite(y).all():
            floats = (i for i, v in enumerate(arguments) if is_float(v))
            for i, leaf in zip(floats, gradient, strict=True):
                require(
                    np.isfinite(leaf).all(),
                    f"with {name} as x, the derivative in argument {i} is no finite number",
                )


@case_check("jax.jvp")
def jvp(case: ConformanceCase) -> None:
    """Forward mode and reverse mode give the same derivative."""
    arguments = case.arguments()
    tangents = [_tangent(i, v) for i, v in enumerate(arguments)]
    y, y_dot = jax.jit(lambda given, ways: jax.jvp(case.op, given, ways))(
        arguments, tuple(tangents)
    )
    same(y, _result(case))
    gradient = _gradient(case)(*arguments)[1]
    moving = [t for t, v in zip(tangents, arguments, strict=True) if is_float(v)]
    expected = sum(np.vdot(g, t) for g, t in zip(gradient, moving, strict=True))
    close(np.vdot(normal(1, y.shape), y_dot), expected)


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
    loop = [case.op(jax.device_put(x), *weights) for x in xs]
    same(jax.jit(mapped)(*arguments), np.stack(loop))


@case_check("jax.vmap_keeps_the_primitive", _has_x)
def vmap_keeps_the_primitive(case: ConformanceCase) -> None:
    """``vmap`` over ``x`` binds a batched ETP primitive: the compiler still sees the operation."""
    mapped, arguments = _mapped(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [eqn.primitive for eqn in etp_equations(mapped, *arguments)]
    names = [primitive.name for primitive in found]
    require(len(found) == 1, f"binds {names}, expected one ETP primitive")
    require(found[0].spec.batched, f"binds {names[0]!r}, which is not batched")


@case_check("jax.vmap_over_weights")
def vmap_over_weights(case: ConformanceCase) -> None:
    """``vmap`` over a weight gives what a loop gives (as plain JAX operations)."""
    arguments = list(case.arguments())
    i = int(case.has_x)
    value = np.asarray(arguments[i])
    axes = tuple(0 if k == i else None for k in range(len(arguments)))

    def with_weight(value: Any) -> list[Any]:
        return [*arguments[:i], jax.device_put(value), *arguments[i + 1 :]]

    many = np.stack([value, 0.5 * value])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        found = jax.jit(jax.vmap(case.op, in_axes=axes))(*with_weight(many))
    plain = jax.jit(lambda *given: run_with(case, given, implementation))
    same(found, np.stack([plain(*with_weight(w)) for w in many]))
