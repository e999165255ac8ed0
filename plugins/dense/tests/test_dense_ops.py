# SPDX-License-Identifier: Apache-2.0
"""``matmul``: values, transformations, units and errors, against ``jax.numpy``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_dense import _ops, matmul

IN, OUT, BATCH = 4, 3, 5
FORMS = [((), True), ((BATCH,), True), ((1,), False)]


def arrays(lead=(), has_bias=True, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(*lead, IN), (IN, OUT), (OUT,)][: 3 if has_bias else 2]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def reference(x, weight, bias=None):
    y = jnp.einsum("...i,io->...o", x, weight)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def assert_same(got, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-12), got, expected)


def primitives_in(jaxpr):
    """Names of all primitives, sub-programs included."""
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    names |= primitives_in(inner)
    return names


# --- values and transformations --------------------------------------------------------------


def scalar(op):
    return lambda *args: jnp.sum(jnp.sin(op(*args)))


def every(n):
    return tuple(range(n))


def scanned(op, args):
    x, rest = args[0], args[1:]
    xs = jnp.stack([x, 2 * x, -x])

    def total(xs, rest):
        def body(carry, x):
            y = jnp.tanh(op(x, *rest))
            return carry + y.sum(), y

        return jax.lax.scan(body, jnp.zeros((), x.dtype), xs)[0]

    return jax.value_and_grad(total, argnums=(0, 1))(xs, rest)


TRANSFORMS = {
    "call": lambda op, a: op(*a),
    "jit": lambda op, a: jax.jit(op)(*a),
    "grad": lambda op, a: jax.grad(scalar(op), every(len(a)))(*a),
    "jit_grad": lambda op, a: jax.jit(jax.grad(scalar(op), every(len(a))))(*a),
    "jvp": lambda op, a: jax.jvp(op, a, tuple(jnp.cos(v) for v in a)),
    "jvp_weight": lambda op, a: jax.jvp(lambda w: op(a[0], w, *a[2:]), a[1:2], a[1:2]),
    "vjp": lambda op, a: jax.vjp(op, *a)[1](jnp.ones_like(op(*a))),
    "linearize": lambda op, a: jax.linearize(op, *a)[1](*a),
    "hessian": lambda op, a: jax.hessian(scalar(op), every(len(a)))(*a),
    "jacfwd": lambda op, a: jax.jacfwd(op, every(len(a)))(*a),
    "checkpoint": lambda op, a: jax.grad(jax.checkpoint(scalar(op)), every(len(a)))(*a),
    "vmap": lambda op, a: jax.vmap(op, (0, *[None] * (len(a) - 1)))(
        jnp.stack([a[0], 2 * a[0]]), *a[1:]
    ),
    "vmap_axis": lambda op, a: jax.vmap(op, (-1, *[None] * (len(a) - 1)), 1)(
        jnp.stack([a[0], 2 * a[0]], -1), *a[1:]
    ),
    "vmap_vmap": lambda op, a: jax.vmap(jax.vmap(lambda x: op(x, *a[1:])))(
        jnp.stack([jnp.stack([a[0], 2 * a[0]])] * 3)
    ),
    "vmap_grad": lambda op, a: jax.vmap(
        jax.grad(scalar(op), every(len(a))), (0, *[None] * (len(a) - 1))
    )(jnp.stack([a[0], 2 * a[0]]), *a[1:]),
    "grad_vmap": lambda op, a: jax.grad(
        lambda x, *rest: jnp.sin(jax.vmap(lambda v: op(v, *rest))(jnp.stack([x, 2 * x]))).sum(),
        every(len(a)),
    )(*a),
    "scan_grad": scanned,
}


FORMS_OF = {"call": 3, "grad": 3, "hessian": 1}  # the others see a vector and a batch


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize(
    ("transform", "lead", "has_bias"),
    [(name, *form) for name in TRANSFORMS for form in FORMS[: FORMS_OF.get(name, 2)]],
)
def test_equals_jax_numpy(transform, lead, has_bias):
    args = arrays(lead, has_bias)
    assert_same(TRANSFORMS[transform](matmul, args), TRANSFORMS[transform](reference, args))


@pytest.mark.parametrize(("lead", "name"), [((), "etp_mv"), ((BATCH,), "etp_mm")])
def test_binds_one_primitive(lead, name):
    args = arrays(lead)
    jaxpr = jax.make_jaxpr(matmul)(*args)
    (eqn,) = jaxpr.eqns
    assert eqn.primitive.name == name
    assert eqn.params == {"has_bias": True}


@pytest.mark.parametrize("has_bias", [False, True])
def test_vmap_keeps_an_etp_primitive(has_bias, recwarn):
    x, *rest = arrays((BATCH,), has_bias)
    jaxpr = jax.make_jaxpr(jax.vmap(lambda v: matmul(v, *rest)))(x)
    assert primitives_in(jaxpr) & {"etp_mv", "etp_mm"} == {"etp_mm"}
    xs = jnp.stack([x, x])
    jaxpr = jax.make_jaxpr(jax.vmap(lambda v: matmul(v, *rest)))(xs)
    assert primitives_in(jaxpr) & {"etp_mv", "etp_mm"} == {"etp_mm"}
    assert not recwarn.list


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_vmap_over_the_weight_is_right(lead):
    x, weight, bias = arrays(lead)
    weights = jnp.stack([weight, 2 * weight])
    got = jax.vmap(matmul, (None, 0, None))(x, weights, bias)
    assert_same(got, jax.vmap(reference, (None, 0, None))(x, weights, bias))


# --- functions of the parameters, dtypes -------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_parameter_functions_are_applied_before_binding(lead):
    x, weight, bias = arrays(lead)
    mask = (weight > 0).astype(weight.dtype)

    def ours(x, w, b):
        return matmul(x, w, b, weight_fn=lambda v: jnp.abs(v) * mask, bias_fn=jnp.exp)

    def plain(x, w, b):
        return reference(x, jnp.abs(w) * mask, jnp.exp(b))

    assert_same(ours(x, weight, bias), plain(x, weight, bias))
    grads = jax.grad(scalar(ours), (0, 1, 2))(x, weight, bias)
    assert_same(grads, jax.grad(scalar(plain), (0, 1, 2))(x, weight, bias))
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(ours)(x, weight, bias).eqns]
    assert names[-1] == ("etp_mm" if lead else "etp_mv")


def test_weight_fn_may_change_the_shape():
    x, weight, _ = arrays()
    assert_same(matmul(x, weight.T, weight_fn=jnp.transpose), reference(x, weight))


def test_bias_fn_without_bias_is_unused():
    x, weight = arrays(has_bias=False)
    assert_same(matmul(x, weight, bias_fn=jnp.exp), reference(x, weight))


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("bfloat16", "float32")])
def test_mixed_dtypes_are_promoted(dtypes):
    low, high = dtypes
    x, weight, bias = arrays((BATCH,))
    x, weight, bias = x.astype(low), weight.astype(high), bias.astype(low)
    y = matmul(x, weight, bias)
    assert y.dtype == high
    tolerance = 1e-12 if high == "float64" else 1e-5
    expected = reference(x.astype(high), weight, bias.astype(high))
    assert_same(y, expected, tolerance)
    grads = jax.grad(lambda *a: matmul(*a).sum(), (0, 1, 2))(x, weight, bias)
    assert [g.dtype for g in grads] == [low, high, low]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_single_dtype_is_kept(dtype):
    assert matmul(*arrays((BATCH,), dtype=dtype)).dtype == dtype


def test_strict_promotion_is_respected(strict_jax):
    x, weight = arrays(has_bias=False)
    with pytest.raises(Exception, match="promotion"):
        matmul(x.astype("float32"), weight)


def test_accepts_lists_and_numpy_arrays():
    x, weight = arrays(has_bias=False)
    assert_same(matmul(np.asarray(x).tolist(), np.asarray(weight)), reference(x, weight))


def test_sizes_of_one():
    assert_same(
        matmul(jnp.full((1, 1), 2.0), jnp.full((1, 1), 3.0), jnp.ones(1)), jnp.full((1, 1), 7.0)
    )


# --- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_units_multiply_and_the_bias_is_rescaled(lead):
    x, weight, bias = arrays(lead)
    y = matmul(x * saiunit.mV, weight * saiunit.mS, bias * saiunit.nA)
    assert y.unit.has_same_dim(saiunit.uA)
    assert_same(y.to_decimal(saiunit.uA), reference(x, weight, bias * 1e-3))


def test_one_argument_with_a_unit():
    x, weight, bias = arrays((BATCH,))
    y = matmul(x, weight * saiunit.mV, bias * saiunit.volt)
    assert y.unit == saiunit.mV
    assert_same(y.mantissa, reference(x, weight, bias * 1e3))


def test_units_that_cancel_give_an_array():
    x, weight, bias = arrays((BATCH,))
    y = matmul(x * saiunit.mV, weight / saiunit.volt, bias)
    assert isinstance(y, jax.Array)
    assert_same(y, reference(x * 1e-3, weight, bias))


def test_the_bound_operands_are_mantissas():
    x, weight = arrays((BATCH,), has_bias=False)
    jaxpr = jax.make_jaxpr(lambda *a: matmul(a[0] * saiunit.mV, a[1]).mantissa)(x, weight)
    assert "etp_mm" in primitives_in(jaxpr)


def test_parameter_functions_see_numbers_and_the_unit_stays():
    """The numbers of the bias are those in the unit of the product."""
    x, weight, bias = arrays((BATCH,))
    functions = {"weight_fn": jnp.square, "bias_fn": jnp.exp}

    def ours(w, b):
        y = matmul(x * saiunit.mV, w * saiunit.mS, b * saiunit.nA, **functions)
        assert y.unit == saiunit.mV * saiunit.mS
        return jnp.sin(y.mantissa).sum()

    def plain(w, b):
        return jnp.sin(reference(x, w**2, jnp.exp(b * 1e-3))).sum()

    assert_same(ours(weight, bias), plain(weight, bias))
    assert_same(jax.grad(ours, (0, 1))(weight, bias), jax.grad(plain, (0, 1))(weight, bias))


def test_a_parameter_function_may_bring_a_unit():
    x, weight, _ = arrays()
    y = matmul(x, weight, weight_fn=lambda w: w * saiunit.mV)
    assert y.unit == saiunit.mV
    y = matmul(x, weight * saiunit.volt, weight_fn=lambda w: w / saiunit.mV)
    assert_same(y, reference(x, weight * 1e3))


def test_gradients_through_quantities():
    x, weight, bias = arrays((BATCH,))

    def ours(w, b):
        y = matmul(x * saiunit.mV, w * saiunit.mS, b * saiunit.nA)
        return jnp.sin(y.to_decimal(saiunit.uA)).sum()

    def plain(w, b):
        return jnp.sin(reference(x, w, b * 1e-3)).sum()

    assert_same(jax.grad(ours, (0, 1))(weight, bias), jax.grad(plain, (0, 1))(weight, bias))


# --- errors ----------------------------------------------------------------------------------

X, W, B = np.ones(IN), np.ones((IN, OUT)), np.ones(OUT)
ERRORS = {
    "x_scalar": (
        (1.0, W),
        ValueError,
        r"x must have shape \[in\] or \[batch, in\], got shape \(\)",
    ),
    "x_rank_3": ((np.ones((2, 2, IN)), W), ValueError, r"x must have .*got shape \(2, 2, 4\)"),
    "weight_rank_1": ((X, X), ValueError, r"weight must have shape \[in, out\], got shape \(4,\)"),
    "weight_rank_3": ((X, np.ones((1, IN, OUT))), ValueError, r"weight must .*\(1, 4, 3\)"),
    "features": ((np.ones(2), W), ValueError, r"last axis of x has size 2, expected 4"),
    "bias_size": ((X, W, np.ones(2)), ValueError, r"bias must have shape \(3,\), got shape \(2,\)"),
    "bias_scalar": ((X, W, 0.5), ValueError, r"bias must have shape \(3,\), got shape \(\)"),
    "bias_rank": ((X, W, B[None]), ValueError, r"bias must have shape \(3,\), got shape \(1, 3\)"),
    "x_int": ((np.ones(IN, int), W), TypeError, "x has dtype int64, expected a floating-point"),
    "x_bool": ((np.ones(IN, bool), W), TypeError, "x has dtype bool, expected a floating-point"),
    "weight_int": ((X, W.astype(int)), TypeError, "weight has dtype int64, expected a floating"),
    "bias_int": ((X, W, B.astype(int)), TypeError, "bias has dtype int64, expected a floating"),
    "x_complex": ((X + 1j, W), TypeError, "x has the complex dtype complex128.*real numbers"),
    "weight_complex": ((X, W + 1j), TypeError, "weight has the complex dtype complex128"),
    "bias_complex": ((X, W, B + 1j), TypeError, "bias has the complex dtype complex128"),
    "x_none": ((None, W), TypeError, "x must be an array or a saiunit.Quantity, got NoneType"),
    "weight_dict": ((X, {"weight": W}), TypeError, "weight must be an array .* got dict"),
    "bias_text": ((X, W, "zeros"), TypeError, "bias must be an array .* got str"),
    "bias_unit": (
        (X * saiunit.mV, W, B * saiunit.ms),
        TypeError,
        "bias has the unit ms, expected the unit of x @ weight, mV",
    ),
    "bias_unitless": ((X * saiunit.mV, W, B), TypeError, "bias has the unit 1, expected .* mV"),
    "bias_not_unitless": ((X, W, B * saiunit.mV), TypeError, "bias has the unit mV, expected .* 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_before_anything_is_bound(case, monkeypatch):
    args, error, message = ERRORS[case]
    monkeypatch.setattr(_ops, "bind", lambda *a, **k: pytest.fail("bound in spite of bad input"))
    with pytest.raises(error, match=message):
        matmul(*args)


@pytest.mark.parametrize("name", ["weight_fn", "bias_fn"])
def test_parameter_functions_must_be_callable(name):
    with pytest.raises(TypeError, match=f"{name} must be a function, got int"):
        matmul(X, W, B, **{name: 1})


def test_shapes_after_the_parameter_functions_are_checked():
    with pytest.raises(ValueError, match=r"weight must have shape \[in, out\], got shape \(12,\)"):
        matmul(X, W, weight_fn=jnp.ravel)
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got shape \(\)"):
        matmul(X, W, B, bias_fn=jnp.sum)


def test_errors_are_raised_while_tracing():
    with pytest.raises(ValueError, match="last axis of x has size 2"):
        jax.jit(matmul)(np.ones(2), W)
