# SPDX-License-Identifier: Apache-2.0
"""Products with parameters that act on the loss of their own step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.executor.direct import DirectProducts, direct_products
from braintrace.ops.traces.base import together
from braintrace.testing import assert_tree_close

RNG = np.random.default_rng(0)
W, XS = RNG.normal(size=(3, 2)), RNG.normal(size=(4, 5, 3))

Loss = Callable[[Any, Any], Any]


def found(loss: Loss, wanted: bool = True, divided: bool = False) -> DirectProducts:
    jaxpr = versions.make_jaxpr(lambda w, x: (loss(w, x),), W, XS[0])
    return direct_products(jaxpr, frozenset({0}), frozenset({0} if wanted else ()), (), divided)


PRODUCTS: dict[str, Loss] = {
    "of jax": lambda w, x: jnp.tanh(x @ w).sum(),
    "an operation": lambda w, x: jnp.tanh(bt.matmul(x, w)).sum(),
    "behind a chain": lambda w, x: jnp.sin(x @ (2.0 * jnp.cos(w))).sum(),
    "twice": lambda w, x: (jnp.tanh(x @ w) * bt.matmul(x, w)).sum(),
    "in a row": lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w.T).sum(),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_gradient_of_a_block_is_the_sum_of_those_of_its_steps(name: str) -> None:
    loss = PRODUCTS[name]
    direct = found(loss)
    assert direct.products and 0 not in direct.elsewhere
    values, recorded, dys = run(direct)
    assert_tree_close(values, jax.vmap(lambda x: loss(W, x))(XS), 1e-12)
    expected = jax.vmap(lambda x: jax.grad(loss)(W, x))(XS).sum(0)
    assert_tree_close(direct.gradients({0: W}, recorded, dys), {0: expected}, 1e-12)
    in_parts = direct.gradients({0: W}, recorded, dys, 5)[0]
    assert in_parts.shape == (5, 3, 2)
    assert_tree_close(together(in_parts, 2), expected, 1e-12)


def run(direct: DirectProducts) -> tuple[Any, Any, Any]:
    """Values of steps, their records, and the gradients of shifts."""

    def step(x: Any) -> Any:
        def of_shifts(shifts: Any) -> Any:
            (value,), recorded = direct.run([W, x], shifts)
            return value, recorded

        (value, recorded), dys = jax.value_and_grad(of_shifts, has_aux=True)(direct.shifts())
        return value, recorded, dys

    found: tuple[Any, Any, Any] = jax.vmap(step)(XS)
    return found


ELEMENTWISE: dict[str, Loss] = {
    "added": lambda w, x: jnp.sin(x[:, :2] + w[0]).sum(),
    "scaled, and from 2": lambda w, x: jnp.sin(x[:, :2] * w[1] - (2.0 - w[2]) / x[:, 1:]).sum(),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_products_where_examples_are_divided(name: str) -> None:
    """Else a sum over them would be one of devices at every step."""
    loss = ELEMENTWISE[name]
    assert not found(loss).products
    direct = found(loss, divided=True)
    assert direct.products and 0 not in direct.elsewhere
    _, recorded, dys = run(direct)
    expected = jax.vmap(lambda x: jax.grad(loss)(W, x))(XS).sum(0)
    assert_tree_close(direct.gradients({0: W}, recorded, dys), {0: expected}, 1e-12)


def test_what_a_step_records() -> None:
    direct = found(PRODUCTS["of jax"])
    (product,) = direct.products
    assert (product.moving, product.trained) == ((0,), (1,))
    assert direct.bytes_per_step == (5 * 3 + 5 * 2) * 8
    assert [(s.shape, s.dtype) for s in direct.shifts()] == [((5, 2), "float64")]
    assert direct.elsewhere == {1} and direct.leaves == (0,)


def test_a_parameter_that_acts_besides_is_found() -> None:
    direct = found(lambda w, x: (x @ w).sum() + (w**2).sum())
    assert len(direct.products) == 1 and direct.elsewhere == {0, 1}
    stopped = found(lambda w, x: (x @ w).sum() + jax.lax.stop_gradient(w**2).sum())
    assert stopped.elsewhere == {1}


@pytest.mark.parametrize(
    "loss",
    [
        lambda w, x: (w.T @ w).sum() * x.sum(),  # nothing in it moves
        lambda w, x: (x.T @ x).sum() + w.sum(),  # no parameter in it
        lambda w, x: (w * x[:3, :2]).sum(),  # no product
        lambda w, x: ((x @ w) > 0).astype(float).sum() * w.sum(),  # without a derivative
    ],
)
def test_what_is_no_product_with_a_parameter(loss: Loss) -> None:
    assert found(loss).products == ()


def test_parameters_that_are_not_wanted_are_left_alone() -> None:
    direct = found(PRODUCTS["of jax"], wanted=False)
    assert direct.products == () and direct.bytes_per_step == 0 and direct.leaves == ()


def test_the_parameter_of_a_product_is_a_constant_of_the_step() -> None:
    direct = found(PRODUCTS["of jax"])
    cut = jax.grad(lambda w: direct.run([w, XS[0]], direct.shifts())[0][0])(W)
    assert not cut.any()  # its gradient is that of the block
