# SPDX-License-Identifier: Apache-2.0
"""Layers against their ``brainstate.nn`` counterparts with the same parameters."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_conv.nn import Conv1d, Conv2d, Conv3d

NORMAL = brainstate.nn.init.Normal(scale=1.0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def size_of(cls, channel_first=False, space=(4, 3, 2)):
    space = space[: cls.num_spatial_dims]
    return (2, *space) if channel_first else (*space, 2)


def pair(cls, *args, **options):
    """A layer of ours and brainstate's, made from the same random numbers."""
    layers = []
    for kind in (cls, getattr(brainstate.nn, cls.__name__)):
        brainstate.random.seed(1)
        layers.append(kind(*args, **options))
    return layers


OPTIONS = {
    "default": {},
    "bias": {"b_init": NORMAL},
    "channel_first": {"channel_first": True, "b_init": NORMAL, "padding": (2,)},
    "strides_groups_mask": {"stride": 2, "groups": 2, "w_mask": NORMAL, "b_init": NORMAL},
    "dilated": {"rhs_dilation": (2,), "padding": "SAME"},
    "explicit": {"lhs_dilation": 2, "padding": ((1, 0),)},
}


FORMS = [
    *((Conv1d, name) for name in OPTIONS),
    (Conv2d, "strides_groups_mask"),
    (Conv3d, "channel_first"),
]


@pytest.mark.parametrize(("cls", "name"), FORMS)
def test_layer_equals_brainstate(cls, name):
    options = OPTIONS[name]
    if name == "channel_first":
        options = options | {"padding": (2,) * cls.num_spatial_dims}
        if cls is Conv1d:
            options |= {"padding": (2, 1)}
    in_size = size_of(cls, options.get("channel_first", False))
    ours, theirs = pair(cls, in_size, 4, 2, **options)
    assert (ours.in_size, ours.out_size) == (theirs.in_size, theirs.out_size)
    assert ours.weight.value.keys() == theirs.weight.value.keys()
    for key, value in theirs.weight.value.items():
        np.testing.assert_array_equal(ours.weight.value[key], value)
    x = draw(3, *in_size)
    for given in (x, x[0]):
        y = ours(given)
        np.testing.assert_allclose(y, theirs(given), 1e-12, 1e-12)
        assert y.shape[-len(in_size) :] == ours.out_size


def test_layers_are_drop_ins():
    layer = Conv2d((4, 4, 2), 3, (2, 1), b_init=NORMAL, name="layer")
    assert isinstance(layer, brainstate.nn.Conv2d)
    assert isinstance(layer.weight, brainstate.ParamState)
    assert set(layer.states(brainstate.ParamState)) == {("weight",)}
    assert (layer.kernel_size, layer.name) == ((2, 1), "layer")
    shapes = {key: value.shape for key, value in layer.weight.value.items()}
    assert shapes == {"weight": (2, 1, 2, 3), "bias": (1, 1, 3)}
    assert set(Conv2d((4, 4, 2), 3, 2).weight.value) == {"weight"}


def test_masked_weights_get_no_gradient():
    mask = np.random.default_rng(3).random((2, 2, 3)) > 0.5
    layer, x = Conv1d((4, 2), 3, 2, w_mask=mask), draw(2, 4, 2)
    grads = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.weight)()
    assert (np.asarray(grads["weight"] != 0) == mask).all()


@pytest.mark.parametrize("lead", [(), (3,)])
def test_layer_binds_one_primitive(lead):
    layer = Conv1d((4, 2), 3, 2, b_init=NORMAL)
    jaxpr = brainstate.transform.make_jaxpr(layer)(jnp.ones((*lead, 4, 2)))[0]
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert names.count("etp_conv") == 1
    assert "transpose" not in names


def test_layer_with_units():
    layer = Conv1d(
        (4, 2),
        3,
        2,
        w_init=brainstate.nn.init.KaimingNormal(unit=saiunit.mS),
        b_init=brainstate.nn.init.Constant(2.0 * saiunit.nA),
        w_mask=np.ones(3),
    )
    assert layer.out_size == (4, 3)
    x = draw(3, 4, 2)
    y = layer(x * saiunit.mV)
    plain = Conv1d((4, 2), 3, 2, w_init=layer.weight.value["weight"].mantissa, b_init=2e-3)
    np.testing.assert_allclose(y.to_decimal(saiunit.uA), plain(x), 1e-12)
    with pytest.raises(TypeError, match="bias has the unit nA, expected the unit .*mS"):
        layer(x)


def test_key_makes_parameters_reproducible():
    def values(key):
        return jax.tree.leaves(Conv1d((4, 2), 3, 2, b_init=NORMAL, key=key).weight.value)

    for key in (5, jax.random.key(5)):
        for a, b in zip(values(key), values(key), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (values(5)[0] != values(6)[0]).any()


def test_values_as_initialisers():
    layer = Conv1d((4, 2), 3, 2, w_init=draw(2, 2, 3), b_init=0.25, param_type=Mine)
    np.testing.assert_array_equal(layer.weight.value["weight"], draw(2, 2, 3))
    np.testing.assert_array_equal(layer.weight.value["bias"], np.full((1, 3), 0.25))
    assert isinstance(layer.weight, Mine)


class Mine(brainstate.ParamState):
    pass


SIZE = (4, 2)
ERRORS = {
    "in_size": (((4, 0), 3, 2), {}, "in_size must be a positive integer or a tuple of them"),
    "in_size_rank": (((4, 4, 2), 3, 2), {}, "in_size must have 2 entries"),
    "out_channels": ((SIZE, 0, 2), {}, "out_channels must be a positive integer"),
    "out_channels_many": (
        (SIZE, (3, 3), 2),
        {},
        r"out_channels must be one positive integer, got \(3, 3\)",
    ),
    "kernel_size": ((SIZE, 3, 0), {}, "kernel_size must be a positive integer"),
    "stride": ((SIZE, 3, 2), {"stride": -1}, "stride must be a positive integer"),
    "groups": ((SIZE, 3, 2), {"groups": 0}, "groups must be a positive integer"),
    "groups_inputs": ((SIZE, 3, 2), {"groups": 3}, "in_channels.*divisible by groups"),
    "padding": ((SIZE, 3, 2), {"padding": "FULL"}, "padding must be 'SAME' or 'VALID'"),
    "kernel_too_large": ((SIZE, 3, 5), {"padding": "VALID"}, "kernel spans 5 .* x has 4"),
    "w_init": ((SIZE, 3, 2), {"w_init": np.ones((3, 2, 2))}, "w_init gives the shape"),
    "w_init_none": ((SIZE, 3, 2), {"w_init": None}, "w_init gives None"),
    "b_init": ((SIZE, 3, 2), {"b_init": np.ones(2)}, r"b_init gives the shape \(2,\), expected"),
    "w_mask": ((SIZE, 3, 2), {"w_mask": np.ones((3, 2, 2))}, "w_mask gives the shape"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_constructor_errors(case):
    args, options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        Conv1d(*args, **options)


def test_call_errors():
    layer = Conv1d(SIZE, 3, 2)
    with pytest.raises(
        ValueError, match=r"expected input shape is \(4, 2\), while we got \(5, 2\)"
    ):
        layer(jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="expected 3D .with batch. or 2D"):
        layer(jnp.ones((2, 2, 4, 2)))
    with pytest.raises(TypeError, match="x has dtype int"):
        layer(jnp.ones(SIZE, int))
