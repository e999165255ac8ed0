# SPDX-License-Identifier: Apache-2.0
"""A primitive that repeats another one."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.ops.primitive import find_primitive, kept_registry
from braintrace.ops.repeated import repeat, repeated

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(3, 4)), RNG.normal(size=4)


def primitive(batched: bool) -> Any:
    bt.matmul(jnp.ones(3), W)  # loads the family
    found = find_primitive("etp_mm" if batched else "etp_mv")
    assert found is not None
    return found


@pytest.mark.parametrize("batched", [True, False])
def test_it_is_the_operation_for_each_row(batched: bool) -> None:
    one = primitive(batched)
    xs = RNG.normal(size=(5, 2, 3) if batched else (5, 3))
    many = repeated(one)
    assert repeated(one) is many and many.spec.one is one
    assert many.name == f"{one.name}_repeated" and find_primitive(many.name) is None

    def run(x: Any, w: Any) -> Any:
        return repeat(one, [x, w, B], {"has_bias": True})

    def plain(x: Any, w: Any) -> Any:
        return x @ w + B

    np.testing.assert_allclose(run(xs, W), plain(xs, W), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(run)(xs, W), plain(xs, W), rtol=1e-10)
    for f, g in ((run, plain),):
        a, b = (jax.grad(lambda *v, h=h: (h(*v) ** 2).sum(), (0, 1))(xs, W) for h in (f, g))
        for found, expected in zip(a, b, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("batched", [True, False])
def test_a_repetition_of_a_repetition_and_of_examples_is_one(batched: bool) -> None:
    one = primitive(batched)
    xs = RNG.normal(size=(2, 5, 3, 3) if batched else (2, 5, 3))

    def twice(x: Any) -> Any:
        return repeat(repeated(one), [x, W, B], {"has_bias": True})

    def of_examples(x: Any) -> Any:
        many = repeated(one)
        return jax.vmap(lambda row: many.bind(row, W, B, has_bias=True), 1, 1)(x)

    for run in (twice, of_examples):
        np.testing.assert_allclose(run(xs), xs @ W + B, rtol=1e-10)
        names = [eqn.primitive.name for eqn in versions.make_jaxpr(run, xs).eqns]
        assert [n for n in names if n.startswith("etp")] in (
            [f"{one.name}_repeated"],
            ["etp_mm_repeated"],
        )


def test_mapped_weights_are_plain_as_elsewhere() -> None:
    many, ws = repeated(primitive(True)), RNG.normal(size=(2, 3, 4))
    found = jax.vmap(lambda w: many.bind(np.ones((5, 2, 3)), w, B, has_bias=True))(ws)
    np.testing.assert_allclose(found[1], np.ones((5, 2, 3)) @ ws[1] + B, rtol=1e-10)


def test_a_pickle_is_the_same_primitive() -> None:
    many = repeated(primitive(True))
    assert pickle.loads(pickle.dumps(many)) is many


def test_rules_that_are_replaced_are_followed() -> None:
    with kept_registry(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = bt.register_primitive("unit_repeated", lambda x, w: x * w)
        many = repeated(one)
        np.testing.assert_allclose(many.bind(np.ones((2, 3)), np.full(3, 2.0)), 2.0)
        bt.register_primitive("unit_repeated", lambda x, w: x + w)
        assert repeated(one) is many
        np.testing.assert_allclose(many.bind(np.ones((2, 3)), np.full(3, 2.0)), 3.0)
