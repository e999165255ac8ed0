# SPDX-License-Identifier: Apache-2.0
"""Operations whose weights change from step to step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base.errors import NotSupportedError
from braintrace.ops.moving import Made, moving, pack
from braintrace.ops.primitive import find_primitive, kept_registry

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(2, 3)), RNG.normal(size=(5, 3, 4))


def typed(*values: Any) -> list[Any]:
    return [jax.ShapeDtypeStruct(np.shape(v), np.asarray(v).dtype) for v in values]


def of_matmul() -> Any:
    """``x @ (w[i] * mask)``."""
    bt.matmul(jnp.ones(3), W[0])  # loads the family
    one = find_primitive("etp_mm")
    assert one is not None
    (aval,) = typed(W[0])
    made = Made(lambda w, mask, i: jnp.asarray(w)[i] * mask, (1, 0), aval, (5,))
    return moving(one, {1: made}, typed(X, np.int32(1), np.ones((3, 4), bool)))


def test_the_result_and_its_derivatives() -> None:
    primitive, mask = of_matmul(), RNG.normal(size=(3, 4)) > 0
    assert primitive.name == "etp_mm_moving" and find_primitive(primitive.name) is None

    def run(x: Any, w: Any, i: int = 3) -> Any:
        return primitive.bind(pack([x, jnp.int32(i), jnp.asarray(mask)]), w, has_bias=False)

    np.testing.assert_allclose(run(X, W), X @ (W[3] * mask), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(run)(X, W, 1), X @ (W[1] * mask), rtol=1e-10)
    of_x, of_w = jax.grad(lambda x, w: (run(x, w) ** 2).sum(), (0, 1))(X, W)
    y = 2 * X @ (W[3] * mask)
    np.testing.assert_allclose(of_x, y @ (W[3] * mask).T, rtol=1e-10)
    expected = np.zeros_like(W)
    expected[3] = X.T @ y * mask
    np.testing.assert_allclose(of_w, expected, rtol=1e-10)


def test_what_is_packed_comes_out_as_it_was() -> None:
    spec, mask = of_matmul().spec, RNG.normal(size=(3, 4)) > 0
    x, (i, found) = spec.unpacked(pack([X.astype("float32"), jnp.int32(4), jnp.asarray(mask)]))
    assert (i.dtype, found.dtype, int(i)) == (np.int32, bool, 4)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(x, X.astype("float32"))
    with jax.enable_x64(False):
        assert pack([jnp.ones(2, "bfloat16"), jnp.int32(300)]).tolist() == [1.0, 1.0, 300.0]


def test_each_example_has_what_moves_of_its_own() -> None:
    primitive, masks = of_matmul(), RNG.normal(size=(4, 3, 4)) > 0
    xs, chosen = RNG.normal(size=(4, 2, 3)), [0, 2, 1, 2]
    rows = [pack([x, jnp.int32(i), m]) for x, i, m in zip(xs, chosen, masks, strict=True)]

    def run(row: Any) -> Any:
        return primitive.bind(row, W, has_bias=False)

    expected = jnp.einsum("bni,bio->bno", xs, W[jnp.array(chosen)] * masks)
    packed = jnp.stack(rows)
    np.testing.assert_allclose(jax.vmap(run)(packed), expected, rtol=1e-10)
    twice = jax.vmap(jax.vmap(run))(packed.reshape(2, 2, -1))
    np.testing.assert_allclose(twice.reshape(4, 2, 4), expected, rtol=1e-10)
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(jax.vmap(run))(packed).eqns]
    assert "etp_mm_moving_examples" in names
    found = jax.vmap(lambda w: primitive.bind(rows[0], w, has_bias=False))(jnp.stack([W, -W]))
    np.testing.assert_allclose(found[1], -expected[0], rtol=1e-10)


def test_an_operation_without_x_has_one_operand() -> None:
    with kept_registry():
        one = bt.register_primitive("unit_moving", lambda w: 2 * w, x_invar_index=None)
        made = Made(lambda w, m: w * m, (0,), typed(W)[0], ())
        primitive = moving(one, {0: made}, typed(np.float64(1)))
        np.testing.assert_allclose(primitive.bind(W, pack([jnp.float32(3)])), 6 * W)
        with pytest.raises(NotSupportedError, match="several operands and no x"):
            moving(one, {1: made}, typed(np.float64(1)))
