# SPDX-License-Identifier: Apache-2.0
"""``SparseLinear`` against ``brainstate.nn.SparseLinear`` with the same parameters."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit
from brainstate.nn import init
from jax.experimental.sparse import BCOO
from saiunit.sparse import COO, CSC, CSR

from braintrace_sparse import nn
from braintrace_sparse._plugin import plugin
from braintrace_sparse._primitives import ETP_SP_MM, ETP_SP_MV
from braintrace_sparse.nn import SparseLinear

IN, OUT = 4, 3


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


DENSE = draw(IN, OUT) * (draw(IN, OUT, seed=1) > 0)


@pytest.mark.parametrize("kind", [CSR, CSC, COO])
@pytest.mark.parametrize("b_init", [None, init.Normal(scale=1.0), 0.5])
def test_equals_brainstate(kind, b_init):
    matrix = kind.fromdense(DENSE)
    brainstate.random.seed(1)
    ours = SparseLinear(matrix, b_init, name="a")
    theirs = brainstate.nn.SparseLinear(matrix, init.Constant(0.5) if b_init == 0.5 else b_init)
    assert isinstance(ours, brainstate.nn.SparseLinear)
    assert ours.weight.value.keys() == theirs.weight.value.keys()
    theirs.weight.value = ours.weight.value
    for lead in ((), (1,), (5,)):
        x = draw(*lead, IN)
        np.testing.assert_allclose(ours(x), theirs(x), 1e-12, 1e-12)
        np.testing.assert_allclose(jax.jit(ours)(x), theirs(x), 1e-12, 1e-12)
    assert (ours.in_size, ours.out_size, ours.name) == ((IN,), theirs.out_size, "a")
    assert ours.spar_mat is matrix


def test_more_axes_are_folded_into_the_batch():
    layer, x = SparseLinear(CSR.fromdense(DENSE), b_init=0.5), draw(2, 3, IN)
    np.testing.assert_allclose(layer(x), x @ DENSE + 0.5, 1e-12)
    with_unit = layer(x[None] * saiunit.UNITLESS)
    assert with_unit.shape == (1, 2, 3, OUT)


def test_brainevent_with_as_many_values_in_each_row():
    events = pytest.importorskip("brainevent")
    col = np.array([[0, 2], [1, 1], [2, 0], [1, 2]])
    layer = SparseLinear(events.FixedNumPerPre((draw(IN, 2), col), shape=(IN, OUT)), b_init=0.5)
    assert layer.weight.value["weight"].shape == (IN, 2)
    dense = np.zeros((IN, OUT))
    np.add.at(dense, (np.arange(IN)[:, None], col), draw(IN, 2))
    np.testing.assert_allclose(layer(draw(5, IN)), draw(5, IN) @ dense + 0.5, 1e-12)


def test_bcoo():
    layer, x = SparseLinear(BCOO.fromdense(DENSE)), draw(5, IN)
    np.testing.assert_allclose(layer(x), x @ DENSE, 1e-12, 1e-12)


def test_parameters():
    class Fixed(brainstate.ParamState):
        pass

    matrix = CSR.fromdense(DENSE)
    layer = SparseLinear(matrix, b_init=init.Normal(), in_size=(IN,), param_type=Fixed)
    assert type(layer.weight) is Fixed
    assert layer.weight.value["weight"].shape == (matrix.nse,)
    assert layer.weight.value["bias"].shape == (OUT,)
    assert set(layer.states()) == {("weight",)}


def test_a_key_makes_the_bias_reproducible():
    def bias(key):
        layer = SparseLinear(CSR.fromdense(DENSE), init.Normal(), key=key)
        return layer.weight.value["bias"]

    np.testing.assert_array_equal(bias(3), bias(3))
    np.testing.assert_array_equal(bias(jax.random.key(3)), bias(jax.random.key(3)))
    assert (bias(3) != bias(4)).any()
    assert (bias(None) != bias(None)).any()


def test_units():
    layer = SparseLinear(CSR.fromdense(DENSE * saiunit.mS), b_init=jnp.ones(OUT) * saiunit.nA)
    y = layer(draw(5, IN) * saiunit.mV)
    np.testing.assert_allclose(y.to_decimal(saiunit.uA), draw(5, IN) @ DENSE + 1e-3, 1e-12)


def test_gradients_equal_those_of_the_dense_product():
    layer, x = SparseLinear(CSR.fromdense(DENSE), b_init=0.5), draw(5, IN)
    grads = brainstate.transform.grad(
        lambda: jnp.sin(layer(x)).sum(), layer.states(brainstate.ParamState)
    )()
    dense = jax.grad(lambda w: jnp.sin(x @ w + 0.5).sum())(DENSE)
    (found,) = grads.values()
    np.testing.assert_allclose(found["weight"], dense[jnp.nonzero(DENSE)], 1e-12)


def test_bad_arguments():
    matrix = CSR.fromdense(DENSE)
    with pytest.raises(TypeError, match="sparse_mat must be a CSR, CSC or COO .*, got ndarray"):
        SparseLinear(np.asarray(DENSE))
    with pytest.raises(TypeError, match="spar_mat.data has dtype int64, expected a floating"):
        SparseLinear(CSR.fromdense(jnp.ones((IN, OUT), int)))
    with pytest.raises(ValueError, match=r"in_size must be 4, .* shape \(4, 3\), got 3"):
        SparseLinear(matrix, in_size=3)
    with pytest.raises(ValueError, match=r"in_size must be 4, .*got \(2, 4\)"):
        SparseLinear(matrix, in_size=(2, IN))
    with pytest.raises(ValueError, match=r"b_init gives the shape \(4,\), expected \(3,\)"):
        SparseLinear(matrix, b_init=jnp.ones(4))
    with pytest.raises(ValueError, match="last axis of x has size 3, expected 4"):
        SparseLinear(matrix)(jnp.ones((5, 2, 3)))


def test_plugin_declares_what_it_provides():
    info = plugin.braintrace_plugin_info()
    assert (info.family, info.distribution) == ("sparse", "braintrace-sparse")
    assert info.exports == {"ops": ("sparse_matmul",), "nn": tuple(nn.__all__)}
    assert plugin.braintrace_primitives(None) == (ETP_SP_MV, ETP_SP_MM)
    assert ETP_SP_MV.batched_counterpart == ETP_SP_MM.name == "etp_sp_mm"
    assert ETP_SP_MM.resolve_trainable_invars({"has_bias": True}) == {"weight": 1, "bias": 2}
    assert ETP_SP_MV.resolve_trainable_invars({"has_bias": False}) == {"weight": 1}
