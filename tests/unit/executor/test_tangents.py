# SPDX-License-Identifier: Apache-2.0
"""``J M + P`` of a step, by columns and by rows, against dense Jacobians."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.executor import tangents
from braintrace.executor.leaves import StateLeaf

IN, UNITS = 2, 3


@jax.custom_vjp
def spike(v: Any) -> Any:
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g / (1 + v**2),))


def looping(v: Any) -> Any:
    """As ``spike``, in whose backward pass the number of iterations is not known."""

    @jax.custom_vjp
    def run(v: Any) -> Any:
        return spike(v)

    def undo(v: Any, g: Any) -> tuple[Any]:
        count = 1 + (v.sum() > 1e6)
        return (
            jax.lax.while_loop(
                lambda s: s[0] < count, lambda s: (s[0] + 1, s[1] / (1 + v**2)), (0, g)
            )[1],
        )

    run.defvjp(lambda v: (spike(v), v), undo)
    return run(v)


@pytest.mark.parametrize("activation", [spike, looping])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_all_tangents_of_a_step(activation: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)

    def step(x: Any, w: Any, r: Any, z: Any, v: Any) -> tuple[Any, Any]:
        z = jnp.sin(z * (0.9 + 0.1j) if dtype == "complex128" else z) + x @ w
        return z, activation(v - 0.1) * v + (z * jnp.conj(z)).real @ r

    def drawn(*shape: int, of: str = "float64") -> Any:
        real, imaginary = rng.normal(size=(2, *shape))
        return jnp.asarray(real + 1j * imaginary if of.startswith("complex") else real, of)

    inputs = [drawn(2, IN), drawn(IN, UNITS, of=dtype), drawn(UNITS, UNITS)]
    inputs += [drawn(2, UNITS, of=dtype), drawn(2, UNITS)]
    info: Any = SimpleNamespace(jaxpr=jax.make_jaxpr(step)(*inputs), num_args=1, num_out=-2)
    leaves = [StateLeaf(k, (k,), 0, jax.typeof(v)) for k, v in enumerate(inputs[1:])]
    parameters, carried = leaves[:2], leaves[2:]
    count = sum(p.size for p in parameters)
    old = [drawn(count, *s.aval.shape, of=s.aval.dtype.name) for s in carried]
    _, pull = tangents.differentiated(info, parameters, carried, carried, inputs)
    found = tangents.moved(parameters, carried, carried, pull, old)

    starts = [p.tangent(jnp.int32(k)) for p in parameters for k in range(p.size)]
    first = parameters[0].size
    for k in range(count):
        own = [jnp.zeros_like(v) for v in inputs[1:3]]
        own[k >= first] = starts[k]
        _, backward = jax.vjp(partial(step, inputs[0]), *inputs[1:])
        for j, state in enumerate(carried):
            for entry in (0, state.size - 1):
                zeros = [jnp.zeros(s.aval.shape, s.aval.dtype) for s in carried]
                zeros[j] = state.cotangent(jnp.int32(entry))
                along = zip(backward(tuple(zeros)), (*own, *(m[k] for m in old)), strict=True)
                wanted = sum(float(jnp.real(a * b).sum()) for a, b in along)
                got = float(jnp.real(zeros[j] * found[j][k]).sum())
                np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def test_where_derivatives_can_be_infinite() -> None:
    def singular(function: Any) -> bool:
        program = jax.make_jaxpr(function)(jnp.ones(2), jnp.ones(2))
        return tangents.has_singular_derivatives(SimpleNamespace(eqns=program.eqns))

    assert singular(lambda h, y: jnp.sqrt(h) + y) and singular(lambda h, y: h / y)
    assert singular(lambda h, y: jax.jit(jnp.linalg.norm)(h) * y) and singular(lambda h, y: h**-1)
    assert not singular(lambda h, y: jnp.tanh(h / 2.0) * y**2 + jnp.where(h > 0, y, 0))
