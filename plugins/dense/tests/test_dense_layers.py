# SPDX-License-Identifier: Apache-2.0
"""Layers against their ``brainstate.nn`` counterparts with the same parameters."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_dense import nn
from braintrace_dense.nn import LeakyRateReadout, Linear, ScaledWSLinear, SignedWLinear

IN, OUT, BATCH = 4, 3, 5


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


random_bias = brainstate.nn.init.Normal(scale=1.0)


# --- Linear ----------------------------------------------------------------------------------


def linears(**options):
    ours = Linear(IN, OUT, **({"b_init": random_bias} | options))
    theirs = brainstate.nn.Linear(IN, OUT, **({"b_init": random_bias} | options))
    theirs.weight.value = ours.weight.value
    return ours, theirs


MASK = np.random.default_rng(3).random((IN, OUT)) > 0.5


@pytest.mark.parametrize("options", [{}, {"b_init": None}, {"w_mask": MASK}])
def test_linear_equals_brainstate(options):
    ours, theirs = linears(**options)
    equal_on_all_shapes(ours, theirs)


def equal_on_all_shapes(ours, theirs):
    for lead in ((), (BATCH,), (2, 1, BATCH), (2, 0)):
        x = draw(*lead, IN)
        y = ours(x)
        assert y.shape == (*lead, OUT)
        np.testing.assert_allclose(y, theirs(x), 1e-12, 1e-12)


def test_linear_is_a_drop_in():
    layer = Linear(IN, OUT)
    assert isinstance(layer, brainstate.nn.Linear)
    assert isinstance(layer.weight, brainstate.ParamState)
    assert {k: v.shape for k, v in layer.weight.value.items()} == {
        "weight": (IN, OUT),
        "bias": (OUT,),
    }
    assert set(Linear(IN, OUT, b_init=None).weight.value) == {"weight"}


def test_masked_weights_get_no_gradient():
    layer, _ = linears(w_mask=lambda shape: jnp.asarray(MASK))
    x = draw(BATCH, IN)
    grads = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.weight)()
    assert (np.asarray(grads["weight"] != 0) == MASK).all()


def test_linear_folds_leading_axes_into_one_batch():
    layer = Linear((2, IN), (2, OUT), w_mask=MASK)
    jaxpr = brainstate.transform.make_jaxpr(layer)(jnp.ones((BATCH, 2, IN)))[0]
    (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name.startswith("etp_")]
    assert eqn.primitive.name == "etp_mm"
    assert eqn.invars[0].aval.shape == (2 * BATCH, IN)


def test_linear_with_units():
    layer = Linear(
        IN,
        OUT,
        w_init=brainstate.nn.init.KaimingNormal(unit=saiunit.mS),
        b_init=brainstate.nn.init.Constant(2.0 * saiunit.nA),
        w_mask=MASK,
    )
    x = draw(2, BATCH, IN)
    y = layer(x * saiunit.mV)
    weight = layer.weight.value["weight"].mantissa * MASK
    np.testing.assert_allclose(y.to_decimal(saiunit.uA), x @ weight + 2e-3, 1e-12)


def test_linear_custom_parameter_class():
    class Mine(brainstate.ParamState):
        pass

    assert isinstance(Linear(IN, OUT, param_type=Mine).weight, Mine)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((0, OUT), {}, "in_size must be a positive integer or a tuple of them, got 0"),
        ((IN, "3"), {}, "out_size must be a positive integer or a tuple of them, got '3'"),
        (((), OUT), {}, "in_size must be a positive integer"),
        (((2, IN), OUT), {}, "must agree in all but the last axis"),
        ((IN, OUT), {"w_init": None}, r"w_init gives None, expected a value of shape \(4, 3\)"),
        ((IN, OUT), {"w_init": np.ones((OUT, IN))}, r"w_init gives the shape \(3, 4\), expected"),
        ((IN, OUT), {"b_init": np.ones(2)}, r"b_init gives the shape \(2,\), expected \(3,\)"),
        ((IN, OUT), {"b_init": lambda s: jnp.ones((2, OUT))}, r"b_init gives the shape \(2, 3\)"),
        ((IN, 1), {"b_init": np.ones(3)}, r"b_init gives the shape \(3,\), expected \(1,\)"),
        ((IN, OUT), {"w_mask": np.ones((IN, 2))}, r"w_mask gives the shape \(4, 2\), expected"),
    ],
)
def test_linear_constructor_errors(args, options, message):
    with pytest.raises(ValueError, match=message):
        Linear(*args, **options)


def test_linear_call_errors():
    layer = Linear(IN, OUT)
    with pytest.raises(ValueError, match="last axis of x has size 2, expected 4"):
        layer(jnp.ones((2, 5, 2)))
    with pytest.raises(TypeError, match="x has dtype int"):
        layer(jnp.ones(IN, int))


# --- processed weights --------------------------------------------------------------------------


@pytest.mark.parametrize("signs", [None, np.where(MASK, 1.0, -1.0), -1.0])
def test_signed_equals_brainstate(signs):
    ours = SignedWLinear(IN, OUT, w_sign=signs, w_init=random_bias)
    theirs = brainstate.nn.SignedWLinear(IN, OUT, w_sign=signs, w_init=random_bias)
    theirs.weight.value = ours.weight.value
    assert ours.weight.value.shape == (IN, OUT)
    assert (ours.weight.value < 0).any()
    equal_on_all_shapes(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"ws_gain": False, "b_init": None}, {"w_mask": np.ones((IN, 1)) * 2, "eps": 9.0}],
)
def test_scaled_equals_brainstate(options):
    options = {"b_init": random_bias} | options
    ours, theirs = (module.ScaledWSLinear(IN, OUT, **options) for module in (nn, brainstate.nn))
    theirs.weight.value = ours.weight.value
    shapes = {"weight": (IN, OUT), "bias": (OUT,), "gain": (1, OUT)}
    assert {k: v.shape for k, v in ours.weight.value.items()} == {
        k: v for k, v in shapes.items() if k in theirs.weight.value
    }
    equal_on_all_shapes(ours, theirs)


def test_scaled_takes_a_mask_of_every_weight():
    ours = ScaledWSLinear(IN, OUT, w_mask=MASK)
    x = jnp.eye(IN)
    assert (np.asarray(ours(x) != 0) == MASK).all()


def test_units_of_processed_weights():
    x, unit = draw(BATCH, IN), saiunit.mS
    signed = SignedWLinear(IN, OUT, w_init=draw(IN, OUT) * unit)
    expected = x @ jnp.abs(draw(IN, OUT))
    np.testing.assert_allclose(signed(x * saiunit.mV).to_decimal(saiunit.uA), expected, 1e-12)
    scaled = ScaledWSLinear(IN, OUT, b_init=2.0 * saiunit.volt, key=0)
    assert scaled(x * saiunit.mV).unit == saiunit.mV
    with pytest.raises(TypeError, match="w_init gives the unit mS, expected none"):
        ScaledWSLinear(IN, OUT, w_init=draw(IN, OUT) * unit)


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize("cls", [Linear, SignedWLinear, ScaledWSLinear])
def test_layers_are_reproducible_and_strict(cls):
    def weight(key):
        layer = cls(IN, OUT, key=key)
        assert isinstance(layer, getattr(brainstate.nn, cls.__name__))
        assert layer(draw(BATCH, IN)).shape == (BATCH, OUT)
        value = layer.weight.value
        return value["weight"] if isinstance(value, dict) else value

    np.testing.assert_array_equal(weight(3), weight(3))
    assert (weight(3) != weight(4)).any()
    brainstate.random.seed(3)
    assert (weight(None) != weight(None)).any()


@pytest.mark.parametrize("cls", [SignedWLinear, ScaledWSLinear])
def test_processed_weights_constructor_errors(cls):
    with pytest.raises(ValueError, match="must agree in all but the last axis"):
        cls((2, IN), OUT)
    with pytest.raises(ValueError, match=r"w_init gives the shape \(2, 2\), expected \(4, 3\)"):
        cls(IN, OUT, w_init=np.ones((2, 2)))


def test_factors_are_checked():
    with pytest.raises(ValueError, match=r"w_sign gives the shape \(2,\), expected \(4, 3\)"):
        SignedWLinear(IN, OUT, w_sign=np.ones(2))
    with pytest.raises(ValueError, match=r"w_mask gives the shape \(2, 1\), expected \(4, 3\)"):
        ScaledWSLinear(IN, OUT, w_mask=np.ones((2, 1)))


# --- leaky readout ------------------------------------------------------------------------------


def readout(*args, dt=1.0 * saiunit.ms, **options):
    with brainstate.environ.context(dt=dt):
        return LeakyRateReadout(IN, OUT, *args, **options)


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_readout_is_a_leaky_integrator(lead):
    tau = np.asarray([2.0, 4.0, 8.0]) * saiunit.ms
    layer = readout(tau, r_init=0.5)
    layer.init_state(*lead)
    r = np.full((*lead, OUT), 0.5)
    for t in range(3):
        x = draw(*lead, IN, seed=t)
        r = np.exp(-1 / np.asarray([2.0, 4.0, 8.0])) * r + x @ layer.W.value
        np.testing.assert_allclose(layer(x), r, 1e-12)
        np.testing.assert_allclose(layer.r.value, r, 1e-12)
    layer.reset_state(*lead)
    np.testing.assert_array_equal(layer.r.value, np.full((*lead, OUT), 0.5))


def test_readout_defaults_and_key():
    layer = readout(key=1)
    assert (layer.tau, layer.in_size, layer.out_size) == (5.0 * saiunit.ms, (IN,), (OUT,))
    np.testing.assert_allclose(layer.decay, np.exp(-0.2), 1e-12)
    np.testing.assert_array_equal(layer.W.value, readout(key=1).W.value)
    np.testing.assert_allclose(readout(5.0, dt=1.0).decay, layer.decay, 1e-12)


def test_readout_with_units():
    layer = readout(w_init=draw(IN, OUT) * saiunit.mS, r_init=1.0 * saiunit.nA)
    layer.init_state()
    y = layer(draw(IN) * saiunit.mV)
    expected = 1e-3 * np.exp(-0.2) + draw(IN) @ draw(IN, OUT)
    np.testing.assert_allclose(y.to_decimal(saiunit.uA), expected, 1e-12)


def test_readout_errors():
    with pytest.raises(ValueError, match=r"brainstate.environ has no dt; set it with"):
        LeakyRateReadout(IN, OUT)
    with pytest.raises(TypeError, match="tau has the unit 1, expected the unit of dt, ms"):
        readout(5.0)
    with pytest.raises(ValueError, match=r"tau must be positive, got 0"):
        readout(0.0 * saiunit.ms)
    with pytest.raises(ValueError, match=r"tau has shape \(2,\), expected one value or \(3,\)"):
        readout(np.ones(2) * saiunit.ms)
    layer = readout()
    with pytest.raises(RuntimeError, match="no state 'r' yet: call init_state"):
        layer(draw(IN))
    with pytest.raises(RuntimeError, match="no state 'r' yet: call init_state"):
        layer.reset_state()
    layer.init_state(2)
    with pytest.raises(ValueError, match=r"x has shape \(4,\), expected \(2, 4\) for the state"):
        layer(draw(IN))
    with pytest.raises(TypeError, match="r_init gives the unit 1, expected the unit of x @ W, mV"):
        layer(draw(2, IN) * saiunit.mV)
