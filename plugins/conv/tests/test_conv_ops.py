# SPDX-License-Identifier: Apache-2.0
"""``conv``: values, transformations, units and errors, against ``jax.lax``."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_conv import _ops, _primitives, conv
from braintrace_conv._plugin import plugin
from braintrace_conv._primitives import ETP_CONV

LAST = ("NHWC", "HWIO", "NHWC")


def draw(*shape, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def reference(x, kernel, bias=None, *, strides=(1,), padding="SAME", **options):
    axes = x.ndim - 2
    strides = strides if len(strides) == axes else strides * axes
    y = jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if bias is None:
        return y
    numbers = jax.lax.conv_dimension_numbers(
        x.shape, kernel.shape, options.get("dimension_numbers")
    )
    place = numbers.out_spec[1]
    return y + jnp.broadcast_to(
        bias.reshape([-1 if i == place else 1 for i in range(y.ndim)]), y.shape
    )


def assert_same(got, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), got, expected)


def primitives_in(jaxpr):
    """Names of all primitives, sub-programs included."""
    found = set()
    for eqn in jaxpr.eqns:
        found.add(eqn.primitive.name)
        for value in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(value, "eqns"):
                found |= primitives_in(value)
    return found


#: Shape of x, of the kernel, and options.
FORMS = {
    "1d": ((2, 3, 7), (4, 3, 3), {}),
    "2d": ((2, 3, 5, 4), (4, 3, 3, 2), {}),
    "3d": ((1, 2, 3, 4, 3), (2, 2, 2, 1, 3), {"padding": "VALID"}),
    "strides": ((2, 3, 7, 6), (4, 3, 3, 2), {"strides": (2, 3)}),
    "same_lower": ((2, 3, 6), (4, 3, 4), {"padding": "SAME_LOWER", "strides": (2,)}),
    "explicit": ((2, 3, 5, 4), (4, 3, 3, 2), {"padding": ((2, 0), (-1, 1))}),
    "rhs_dilation": ((2, 3, 7), (4, 3, 3), {"rhs_dilation": (2,)}),
    "lhs_dilation": ((2, 3, 4), (4, 3, 3), {"lhs_dilation": (3,), "padding": ((2, 2),)}),
    "groups": ((2, 4, 5), (6, 2, 3), {"feature_group_count": 2}),
    "batch_groups": ((6, 2, 5), (6, 2, 3), {"batch_group_count": 3}),
    "channels_last": ((2, 5, 4, 3), (3, 2, 3, 4), {"dimension_numbers": LAST}),
    "permuted": ((5, 2, 4, 3), (3, 2, 3, 4), {"dimension_numbers": ("HNWC", "IWHO", "CWHN")}),
    "numbers": (
        (5, 2, 3),
        (4, 3, 2),
        {"dimension_numbers": jax.lax.ConvDimensionNumbers((1, 2, 0), (0, 1, 2), (2, 0, 1))},
    ),
    "batch_of_none": ((0, 3, 7), (4, 3, 3), {}),
    "ones": ((1, 1, 1), (1, 1, 1), {}),
}
WITH_BIAS = [*((name, True) for name in FORMS), ("1d", False)]


def arrays(name, has_bias=True, dtype=np.float64):
    x, kernel, options = FORMS[name]
    numbers = jax.lax.conv_dimension_numbers(x, kernel, options.get("dimension_numbers"))
    shapes = [x, kernel, (kernel[numbers.rhs_spec[0]],)][: 2 + has_bias]
    return tuple(draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize(("name", "has_bias"), WITH_BIAS)
def test_values_and_gradients_equal_jax_lax(name, has_bias):
    args, options = arrays(name, has_bias), FORMS[name][2]

    def gradient(op):
        def total(*a):
            return jnp.sin(op(*a, **options)).sum()

        return jax.jit(lambda *a: (op(*a, **options), jax.grad(total, range(len(a)))(*a)))(*args)

    assert_same(gradient(conv), gradient(reference))


TRANSFORMS = {
    "jvp": lambda op, a: jax.jvp(op, a, tuple(jnp.cos(v) for v in a)),
    "hessian": lambda op, a: jax.hessian(lambda *b: jnp.sin(op(*b)).sum(), (0, 1))(*a),
    "vmap_axis": lambda op, a: jax.vmap(op, (-1, None, None), 1)(
        jnp.stack([a[0], 2 * a[0]], -1), *a[1:]
    ),
    "vmap_grad": lambda op, a: jax.vmap(
        jax.grad(lambda *b: jnp.sin(op(*b)).sum(), (0, 1, 2)), (0, None, None)
    )(jnp.stack([a[0], 2 * a[0]]), *a[1:]),
    "linear_transpose": lambda op, a: jax.linear_transpose(lambda x: op(x, a[1]), a[0])(op(*a)),
}


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformations_equal_jax_lax(transform):
    args = (draw(2, 2, 4), draw(2, 2, 3), draw(2))
    assert_same(
        *(jax.jit(partial(TRANSFORMS[transform], op))(args) for op in (conv, reference)), 1e-11
    )


def test_binds_one_primitive_with_channels_last():
    x, kernel, options = FORMS["channels_last"]
    jaxpr = jax.make_jaxpr(partial(conv, **options))(jnp.ones(x), jnp.ones(kernel))
    (eqn,) = jaxpr.eqns
    assert eqn.primitive.name == "etp_conv"
    assert eqn.params == {
        "has_bias": False,
        "strides": (1, 1),
        "padding": ((1, 1), (0, 1)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "groups": 1,
    }


def layouts_in(jaxpr):
    """Dimension numbers of all convolutions, sub-programs included."""
    found = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            found.add(eqn.params["dimension_numbers"])
        for value in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(value, "eqns"):
                found |= layouts_in(value)
    return found


@pytest.mark.parametrize("name", ["2d", "permuted", "strides"])
def test_reverse_mode_convolves_channels_last(name):
    """Other layouts are slow inside loops on CPUs."""
    args, options = arrays(name), FORMS[name][2]
    gradient = jax.grad(lambda *a: jnp.sin(conv(*a, **options)).sum(), (0, 1, 2))
    last = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    assert layouts_in(jax.make_jaxpr(gradient)(*args).jaxpr) == {last}


@pytest.mark.parametrize("name", ["1d", "permuted", "batch_groups"])
def test_vmap_keeps_the_primitive(name, recwarn):
    x, *rest = arrays(name)
    jaxpr = jax.make_jaxpr(jax.vmap(lambda v: conv(v, *rest, **FORMS[name][2])))(jnp.stack([x, x]))
    assert "etp_conv" in primitives_in(jaxpr)
    assert "conv_general_dilated" not in primitives_in(jaxpr)
    assert not recwarn.list


def test_vmap_over_the_kernel_is_right():
    x, kernel, _ = arrays("1d")
    got = jax.vmap(conv, (None, 0))(x, jnp.stack([kernel, 2 * kernel]))
    assert_same(got, jnp.stack([reference(x, kernel), reference(x, 2 * kernel)]))


def test_plugin_declares_what_it_provides():
    info = plugin.braintrace_plugin_info()
    assert (info.family, info.distribution) == ("conv", "braintrace-conv")
    assert info.exports == {"ops": ("conv",), "nn": ("Conv1d", "Conv2d", "Conv3d")}
    assert plugin.braintrace_primitives(None) == (ETP_CONV,)


# --- arguments, functions of the parameters, dtypes ---------------------------------------------


def test_one_integer_stands_for_all_axes():
    x, kernel, _ = arrays("2d")
    wide = conv(x, kernel, strides=2, rhs_dilation=[2], padding="same")
    assert_same(wide, reference(x, kernel, strides=(2, 2), rhs_dilation=(2, 2)))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4, 1)])
def test_bias_with_axes_of_size_one(shape):
    x, kernel, bias = arrays("1d")
    assert_same(conv(x, kernel, bias.reshape(shape)), reference(x, kernel, bias))


def test_bias_with_axes_of_size_one_channels_last():
    x, kernel, bias = arrays("channels_last")
    got = conv(x, kernel, bias.reshape(1, 1, 4), dimension_numbers=LAST)
    assert_same(got, reference(x, kernel, bias, dimension_numbers=LAST))


def test_parameter_functions_are_applied_before_binding():
    x, kernel, bias = arrays("1d")
    mask = kernel > 0
    got = conv(x, kernel, bias, kernel_fn=lambda k: jnp.abs(k) * mask, bias_fn=jnp.exp)
    assert_same(got, reference(x, jnp.abs(kernel) * mask, jnp.exp(bias)))
    assert_same(conv(x, kernel.T, kernel_fn=jnp.transpose), reference(x, kernel))
    assert_same(conv(x, kernel, bias_fn=jnp.exp), reference(x, kernel))


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("bfloat16", "float32")])
def test_mixed_dtypes_are_promoted(dtypes):
    low, high = dtypes
    x, kernel, bias = arrays("1d")
    args = (x.astype(low), kernel.astype(high), bias.astype(low))
    y, grads = jax.jit(lambda *a: (conv(*a), jax.grad(lambda *b: conv(*b).sum(), (0, 1, 2))(*a)))(
        *args
    )
    assert y.dtype == high
    expected = reference(*(v.astype(high) for v in args))
    assert_same(y, expected, 1e-12 if high == "float64" else 1e-5)
    assert [g.dtype for g in grads] == [low, high, low]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_single_dtype_is_kept(dtype):
    args = arrays("1d", dtype=dtype)
    assert conv(*args).dtype == dtype
    assert_same(conv(*args).astype(float), reference(*args).astype(float), 0.03)


def test_accepts_lists_and_numpy_arrays():
    x, kernel, _ = arrays("1d")
    assert_same(conv(np.asarray(x).tolist(), np.asarray(kernel)), reference(x, kernel))


def test_numbers_that_are_not_finite_stay_where_they_are():
    x = draw(1, 4, 1).at[0, 0].set(jnp.inf)
    f = jnp.ones((1, 2, 1))
    weights = {"weight": jnp.ones((2, 1, 1))}
    geometry = {
        "strides": (2,),
        "padding": ((0, 0),),
        "lhs_dilation": (1,),
        "rhs_dilation": (1,),
        "groups": 1,
    }
    read = ETP_CONV.instant_drtrl(x, f, weights, has_bias=False, **geometry)["weight"]
    steps = x[None], f[None]
    total = ETP_CONV.increments_drtrl(*steps, weights, has_bias=False, **geometry)["weight"]
    for found in (read, total):
        assert_same(found[0, 1, 0, :, 0], x[0, 2:, 0])


@pytest.mark.parametrize("part", [1, 2, 3, 7])
def test_sums_are_the_same_in_parts(part, monkeypatch):
    steps, x, f = 7, draw(7, 2, 5, 4), draw(7, 2, 3, 6, seed=1)
    weights = {"weight": draw(3, 2, 6, seed=2)}
    options = {
        "strides": (2,),
        "padding": ((1, 1),),
        "lhs_dilation": (1,),
        "rhs_dilation": (1,),
        "groups": 2,
        "has_bias": False,
    }

    def sums():
        flat = x.reshape(2 * steps, 5, 4), f.reshape(2 * steps, 3, 6)
        return (
            ETP_CONV.xy_to_dw(*flat, weights, **options)["weight"],
            ETP_CONV.increments_drtrl(x, f, weights, **options)["weight"],
        )

    expected = sums()
    monkeypatch.setattr(_primitives, "PART", part * 20)
    monkeypatch.setattr(_primitives, "STEPS", part)
    for found, whole in zip(sums(), expected, strict=True):
        assert_same(found, whole)


@pytest.mark.parametrize("together", [4, 7])
def test_a_large_trace_is_solved_some_positions_at_a_time(together, monkeypatch):
    signal, trace = draw(2, 3, 3, 4), {"weight": draw(2, 3, 3, 4, 3, 2, 5, seed=1)}
    expected = jnp.einsum("bxyo,bxyokli->klio", signal, trace["weight"])
    monkeypatch.setattr(_primitives, "TOGETHER", together)
    for large in (2**16, 1):
        monkeypatch.setattr(_primitives, "LARGE", large)
        solved = ETP_CONV.solve_drtrl(signal, trace, {})["weight"]
        np.testing.assert_allclose(solved, expected, 1e-12, 1e-12)


# --- units --------------------------------------------------------------------------------------


def test_units_multiply_and_the_bias_is_rescaled():
    x, kernel, bias = arrays("permuted")
    options = FORMS["permuted"][2]
    y = conv(x * saiunit.mV, kernel * saiunit.mS, bias * saiunit.nA, **options)
    assert y.unit.has_same_dim(saiunit.uA)
    assert_same(y.to_decimal(saiunit.uA), reference(x, kernel, bias * 1e-3, **options))


def test_one_argument_with_a_unit():
    x, kernel, bias = arrays("1d")
    y = conv(x, kernel * saiunit.mV, bias.reshape(4, 1) * saiunit.volt)
    assert y.unit == saiunit.mV
    assert_same(y.mantissa, reference(x, kernel, bias * 1e3))


def test_units_that_cancel_give_an_array():
    x, kernel, bias = arrays("1d")
    y = conv(x * saiunit.mV, kernel / saiunit.volt, bias)
    assert isinstance(y, jax.Array)
    assert_same(y, reference(x * 1e-3, kernel, bias))


def test_parameter_functions_see_numbers_and_the_unit_stays():
    """The numbers of the bias are those in the unit of the product."""
    x, kernel, bias = arrays("1d")
    functions = {"kernel_fn": jnp.square, "bias_fn": jnp.exp}

    def ours(k, b):
        y = conv(x * saiunit.mV, k * saiunit.mS, b * saiunit.nA, **functions)
        assert y.unit == saiunit.mV * saiunit.mS
        return jnp.sin(y.mantissa).sum()

    def plain(k, b):
        return jnp.sin(reference(x, k**2, jnp.exp(b * 1e-3))).sum()

    assert_same(ours(kernel, bias), plain(kernel, bias))
    assert_same(jax.grad(ours, (0, 1))(kernel, bias), jax.grad(plain, (0, 1))(kernel, bias))
    y = conv(x, kernel * saiunit.volt, kernel_fn=lambda k: k / saiunit.mV)
    assert_same(y, reference(x, kernel * 1e3))


# --- errors -------------------------------------------------------------------------------------

X, K, B = np.ones((4, 3, 8)), np.ones((2, 3, 3)), np.ones(2)
IMAGE, FILTER = np.ones((4, 3, 8, 8)), np.ones((2, 3, 3, 3))
VALUE, TYPE = ValueError, TypeError
ERRORS = {
    "x_unbatched": ((X[0], K[0]), {}, VALUE, r"x must have a batch axis.*got shape \(3, 8\)"),
    "x_no_space": ((X[..., 0], K[..., 0]), {}, VALUE, r"one to three spatial axes, got .*\(4, 3\)"),
    "x_4d": ((np.ones((1,) * 6), np.ones((1,) * 6)), {}, VALUE, "one to three spatial axes"),
    "kernel_rank": ((X, FILTER), {}, VALUE, r"kernel must have 3 axes .*got shape \(2, 3, 3, 3\)"),
    "image_unbatched": ((IMAGE[0], FILTER), {}, VALUE, "single example, give it a batch axis"),
    "channels_last": ((X.transpose(0, 2, 1), K), {}, VALUE, "dimension_numbers says; by default"),
    "channels": ((X, np.ones((2, 2, 3))), {}, VALUE, "x has 3 channels, expected 2: the kernel"),
    "groups": (
        (X, K),
        {"feature_group_count": 3},
        VALUE,
        "x has 3 channels, expected 9: the kernel reads 3 in each of 3 groups",
    ),
    "groups_of_outputs": (
        (X, np.ones((2, 1, 3))),
        {"feature_group_count": 3},
        VALUE,
        "the kernel has 2 output channels, which 3 groups do not divide",
    ),
    "batch_groups": (
        (X, np.ones((3, 3, 3))),
        {"batch_group_count": 3},
        VALUE,
        "x has a batch of 4, which batch_group_count=3 does not divide",
    ),
    "both_groups": (
        (X, K),
        {"feature_group_count": 3, "batch_group_count": 2},
        VALUE,
        "feature_group_count is 3 and batch_group_count is 2; at least one of them must be 1",
    ),
    "no_groups": ((X, K), {"feature_group_count": 0}, VALUE, "feature_group_count must be a pos"),
    "strides_zero": ((X, K), {"strides": 0}, VALUE, "strides must be a positive integer.*got 0"),
    "strides_text": ((X, K), {"strides": "2"}, VALUE, "strides must be a positive integer"),
    "strides_many": (
        (X, K),
        {"strides": (1, 2)},
        VALUE,
        r"strides must be one integer or one for each of 1 spatial axes, got \(1, 2\)",
    ),
    "dilation": ((X, K), {"rhs_dilation": (1.5,)}, VALUE, r"rhs_dilation must be .*got \(1.5,\)"),
    "padding_name": ((X, K), {"padding": "FULL"}, VALUE, "padding must be one of .*got 'FULL'"),
    "padding_number": ((X, K), {"padding": 1}, VALUE, r"padding must be .*1 pairs.*got 1"),
    "padding_pairs": ((X, K), {"padding": ((1, 1), (1, 1))}, VALUE, "padding must be .*1 pairs"),
    "padding_fraction": ((X, K), {"padding": ((0.5, 1),)}, VALUE, "padding must be .*pairs of int"),
    "padding_dilated": (
        (X, K),
        {"lhs_dilation": 2},
        VALUE,
        r"padding is 'SAME' and lhs_dilation is \(2,\); a dilated input needs explicit padding",
    ),
    "empty": (
        (IMAGE, np.ones((2, 3, 1, 5))),
        {"rhs_dilation": 2, "padding": "VALID"},
        VALUE,
        "along spatial axis 1, the kernel spans 9 elements and the padded x has 8",
    ),
    "layout_text": (
        (IMAGE, FILTER),
        {"dimension_numbers": ("NHWC", "HWIO")},
        VALUE,
        r"dimension_numbers \('NHWC', 'HWIO'\) do not fit x of shape \(4, 3, 8, 8\)",
    ),
    "layout_rank": ((X, K), {"dimension_numbers": LAST}, VALUE, "dimension_numbers .* do not fit"),
    "layout_twice": (
        (X, K),
        {"dimension_numbers": jax.lax.ConvDimensionNumbers((0, 0, 1), (0, 1, 2), (0, 1, 2))},
        VALUE,
        "dimension_numbers must name each of the 3 axes once",
    ),
    "layout_number": ((X, K), {"dimension_numbers": 3}, VALUE, "dimension_numbers 3 do not fit"),
    "bias_size": ((X, K, np.ones(3)), {}, VALUE, r"bias must have shape \(2,\), got shape \(3,\)"),
    "bias_full": ((X, K, np.ones((2, 8))), {}, VALUE, r"bias must have .*got shape \(2, 8\)"),
    "bias_wrong_axis": ((X, K, np.ones((1, 2))), {}, VALUE, r"bias must have .*shape \(1, 2\)"),
    "bias_scalar": ((X, K, 0.5), {}, VALUE, r"bias must have shape \(2,\), got shape \(\)"),
    "x_int": ((X.astype(int), K), {}, TYPE, "x has dtype int64, expected a floating-point"),
    "kernel_complex": ((X, K + 1j), {}, TYPE, "kernel has the complex dtype complex128"),
    "bias_bool": ((X, K, B > 0), {}, TYPE, "bias has dtype bool, expected a floating"),
    "x_none": ((None, K), {}, TYPE, "x must be an array or a saiunit.Quantity, got NoneType"),
    "kernel_dict": ((X, {"weight": K}), {}, TYPE, "kernel must be an array .* got dict"),
    "bias_text": ((X, K, "zeros"), {}, TYPE, "bias must be an array .* got str"),
    "bias_unit": (
        (X * saiunit.mV, K, B * saiunit.ms),
        {},
        TYPE,
        "bias has the unit ms, expected the unit of x times kernel, mV",
    ),
    "bias_unitless": ((X * saiunit.mV, K, B), {}, TYPE, "bias has the unit 1, expected .* mV"),
    "kernel_fn": ((X, K), {"kernel_fn": 1}, TYPE, "kernel_fn must be a function, got int"),
    "bias_fn": ((X, K, B), {"bias_fn": 1}, TYPE, "bias_fn must be a function, got int"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_before_anything_is_bound(case, monkeypatch):
    args, options, error, message = ERRORS[case]
    monkeypatch.setattr(_ops, "bind", lambda *a, **k: pytest.fail("bound in spite of bad input"))
    with pytest.raises(error, match=message):
        conv(*args, **options)


def test_errors_are_raised_while_tracing():
    with pytest.raises(ValueError, match="x has 3 channels, expected 2"):
        jax.jit(conv)(X, np.ones((2, 2, 3)))
