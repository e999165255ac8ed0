# SPDX-License-Identifier: Apache-2.0
"""``lora_matmul``: values, transformations, units and errors, against ``jax.numpy``."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_lora import _ops, lora_matmul
from braintrace_lora._primitives import ETP_LORA_MM, ETP_LORA_MV

IN, RANK, OUT, BATCH, ALPHA = 4, 2, 3, 5, -0.7
FORMS = [((), True), ((BATCH,), False), ((1,), True)]


def arrays(lead=(), has_bias=True, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(*lead, IN), (IN, RANK), (RANK, OUT), (OUT,)][: 4 if has_bias else 3]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def ours(x, B, A, bias=None):
    return lora_matmul(x, B, A, alpha=ALPHA, bias=bias)


def effective(x, B, A, bias=None):
    """The dense product with the weight that the factors make."""
    y = jnp.einsum("...i,io->...o", x, ALPHA * (B @ A))
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def assert_same(got, expected, rtol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-12), got, expected)


# --- values and transformations --------------------------------------------------------------


def scalar(op):
    return lambda *args: jnp.sum(jnp.sin(op(*args)))


def every(n):
    return tuple(range(n))


def over_x(op, a, axis=0):
    many = jnp.stack([a[0], 2 * a[0]], axis)
    return jax.vmap(op, (axis, *[None] * (len(a) - 1)), axis)(many, *a[1:])


TRANSFORMS = {
    "jit": lambda op, a: jax.jit(op)(*a),
    "jit_grad": lambda op, a: jax.jit(jax.grad(scalar(op), every(len(a))))(*a),
    "jvp": lambda op, a: jax.jvp(op, a, tuple(jnp.cos(v) for v in a)),
    "linearize": lambda op, a: jax.linearize(op, *a)[1](*a),
    "hessian": lambda op, a: jax.hessian(scalar(op), (1, 2))(*a),
    "checkpoint": lambda op, a: jax.grad(jax.checkpoint(scalar(op)), every(len(a)))(*a),
    "vmap": over_x,
    "vmap_axis": lambda op, a: over_x(op, a, -1),
    "vmap_grad": lambda op, a: over_x(jax.grad(scalar(op), every(len(a))), a),
    "scan_grad": lambda op, a: jax.grad(
        lambda *v: jax.lax.scan(lambda c, s: (c + scalar(op)(s * v[0], *v[1:]), 0), 0.0, a[1][0])[0]
    )(*a),
}


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("lead", "has_bias"), FORMS)
def test_equals_the_product_with_the_effective_weight(transform, lead, has_bias):
    args = arrays(lead, has_bias)
    assert_same(TRANSFORMS[transform](ours, args), TRANSFORMS[transform](effective, args))


@pytest.mark.parametrize(("lead", "name"), [((), "etp_lora_mv"), ((BATCH,), "etp_lora_mm")])
def test_binds_one_primitive(lead, name):
    (eqn,) = jax.make_jaxpr(ours)(*arrays(lead)).eqns
    assert eqn.primitive.name == name
    assert eqn.params == {"alpha": ALPHA, "has_bias": True}
    assert isinstance(eqn.params["alpha"], float)


@pytest.mark.parametrize("spec", [ETP_LORA_MV, ETP_LORA_MM])
def test_specification(spec):
    keys = {"lora_b": 1, "lora_a": 2}
    assert spec.resolve_trainable_invars({"alpha": 2.0, "has_bias": False}) == keys
    with_bias = spec.resolve_trainable_invars({"alpha": 2.0, "has_bias": True})
    assert with_bias == keys | {"bias": 3}
    assert spec.x_invar_index == 0 and not spec.gradient_enabled


def test_vmap_turns_one_into_many(recwarn):
    x, *rest = arrays((BATCH,))
    jaxpr = jax.make_jaxpr(jax.vmap(lambda v: ours(v, *rest)))(x)
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    assert "etp_lora_mm" in names and "etp_lora_mv" not in names
    assert not recwarn.list


def test_vmap_over_a_factor_is_right():
    x, B, A, bias = arrays()
    many = jnp.stack([B, 2 * B])
    got = jax.vmap(ours, (None, 0, None, None))(x, many, A, bias)
    assert_same(got, jax.vmap(effective, (None, 0, None, None))(x, many, A, bias))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 2), (2, 5, 2), (3, 0, 2), (0, 2, 2)])
@pytest.mark.parametrize("lead", [(), (1,), (0,)])
def test_any_size(sizes, lead):
    n, rank, out = sizes
    x, B, A = jnp.ones((*lead, n)), jnp.ones((n, rank)), jnp.ones((rank, out))
    assert_same(lora_matmul(x, B, A), jnp.full((*lead, out), float(n * rank)))


# --- functions of the parameters, alpha, dtypes ------------------------------------------------


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_parameter_functions_are_applied_before_binding(lead):
    x, B, A, bias = arrays(lead)
    mask = (B > 0).astype(B.dtype)

    def processed(x, B, A, bias):
        return lora_matmul(
            x, B, A, bias=bias, b_fn=lambda v: v * mask, a_fn=jnp.abs, bias_fn=jnp.exp
        )

    def plain(x, B, A, bias):
        return x @ (B * mask) @ jnp.abs(A) + jnp.exp(bias)

    args = (x, B, A, bias)
    assert_same(
        jax.value_and_grad(scalar(processed), every(4))(*args),
        jax.value_and_grad(scalar(plain), every(4))(*args),
    )
    assert jax.make_jaxpr(processed)(*args).eqns[-1].primitive.name.startswith("etp_lora_m")


def test_functions_may_change_the_shape():
    x, B, A = arrays(has_bias=False)
    assert_same(lora_matmul(x, B.T, A, b_fn=jnp.transpose, bias_fn=jnp.exp), x @ B @ A)


@pytest.mark.parametrize("alpha", [2, np.float32(2), np.array(2.0), jnp.array(2.0), jnp.int32(2)])
def test_alpha_is_any_fixed_number(alpha):
    x, B, A = arrays(has_bias=False, dtype="float32")
    y = lora_matmul(x, B, A, alpha=alpha)
    assert y.dtype == "float32"
    assert_same(y, 2 * (x @ B @ A), 1e-6)


def test_a_factor_that_is_traced_goes_into_an_operand():
    x, B, A = arrays(has_bias=False)
    with pytest.raises(TypeError, match=r"alpha must be a fixed number.*Multiply A by it"):
        jax.grad(lambda alpha: lora_matmul(x, B, A, alpha=alpha).sum())(2.0)
    got = jax.grad(lambda alpha: lora_matmul(x, B, A, a_fn=lambda v: alpha * v).sum())(2.0)
    assert_same(got, (x @ B @ A).sum())


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("bfloat16", "float32")])
def test_mixed_dtypes_are_promoted(dtypes):
    low, high = dtypes
    x, B, A, bias = arrays((BATCH,))
    args = (x.astype(low), B.astype(high), A.astype(low), bias.astype(low))
    y = ours(*args)
    assert y.dtype == high
    tolerance = 1e-12 if high == "float64" else 1e-5
    assert_same(y, effective(*(v.astype(high) for v in args)), tolerance)
    grads = jax.grad(lambda *a: ours(*a).sum(), every(4))(*args)
    assert [g.dtype for g in grads] == [low, high, low, low]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_single_dtype_is_kept(dtype):
    assert ours(*arrays((BATCH,), dtype=dtype)).dtype == dtype


def test_accepts_lists_and_numpy_arrays():
    x, B, A = arrays(has_bias=False)
    assert_same(lora_matmul(np.asarray(x).tolist(), np.asarray(B), A), x @ B @ A)


# --- units -----------------------------------------------------------------------------------


def test_units_are_multiplied_and_the_bias_is_rescaled():
    x, B, A, bias = arrays((BATCH,))
    y = lora_matmul(x * saiunit.mV, B * saiunit.mS, A, alpha=ALPHA, bias=bias * saiunit.nA)
    expected = effective(x, B, A, bias * 1e-3)
    assert_same(saiunit.Quantity(y).to_decimal(saiunit.uA), expected)


def test_a_dimensionless_result_is_an_array():
    x, B, A = arrays(has_bias=False)
    y = lora_matmul(x * saiunit.mV, B, A / saiunit.volt)
    assert isinstance(y, jax.Array)
    assert_same(y, 1e-3 * (x @ B @ A))


def test_gradients_with_units():
    x, B, A, bias = arrays()

    def energy(B, A, bias):
        y = lora_matmul(x * saiunit.mV, B * saiunit.mS, A, bias=bias * saiunit.mA)
        return jnp.sin(y.to_decimal(saiunit.uA)).sum()

    def plain(B, A, bias):
        return jnp.sin(x @ B @ A + 1e3 * bias).sum()

    assert_same(jax.grad(energy, every(3))(B, A, bias), jax.grad(plain, every(3))(B, A, bias))


def test_functions_see_numbers_and_the_units_stay():
    """The numbers of the bias are those in the unit of the product."""
    x, B, A, bias = arrays((BATCH,))
    functions = {"b_fn": jnp.square, "a_fn": jnp.sin, "bias_fn": jnp.exp}

    def energy(B, A, bias):
        factors, bias = (B * saiunit.siemens, A * saiunit.ohm), 1e-3 * bias * saiunit.volt
        y = lora_matmul(x * saiunit.mV, *factors, bias=bias, **functions)
        assert y.unit.has_same_dim(saiunit.mV)
        return jnp.sin(y.mantissa).sum()

    def plain(B, A, bias):
        return jnp.sin(x @ B**2 @ jnp.sin(A) + jnp.exp(bias)).sum()

    assert_same(energy(B, A, bias), plain(B, A, bias))
    assert_same(jax.grad(energy, every(3))(B, A, bias), jax.grad(plain, every(3))(B, A, bias))


def test_a_bias_of_another_dimension_names_both_units():
    x, B, A, bias = arrays()
    with pytest.raises(TypeError, match=r"bias has the unit nA, expected the unit of .*, mV"):
        lora_matmul(x * saiunit.mV, B, A, bias=bias * saiunit.nA)
    with pytest.raises(TypeError, match=r"bias has the unit 1, expected the unit of x @ B @ A, mV"):
        lora_matmul(x, B, A * saiunit.mV, bias=bias)


# --- errors ----------------------------------------------------------------------------------

X, B_, A_ = np.ones((2, 4)), np.ones((4, 2)), np.ones((2, 3))
ERRORS = {
    "x_rank": ((np.ones((1, 2, 4)), B_, A_), {}, ValueError, r"x must have shape \[in\] or .*LoRA"),
    "x_scalar": ((1.0, B_, A_), {}, ValueError, r"x must have shape \[in\] .*got shape \(\)"),
    "B_rank": ((X, np.ones(4), A_), {}, ValueError, r"B must have shape \[in, rank\], got .*4"),
    "A_rank": ((X, B_, np.ones(3)), {}, ValueError, r"A must have shape \[rank, out\], got .*3"),
    "in": ((np.ones(3), B_, A_), {}, ValueError, "last axis of x has size 3, expected 4"),
    "ranks": ((X, B_, np.ones((3, 3))), {}, ValueError, "B has the rank 2 and A has the rank 3"),
    "swapped": ((X, A_, B_), {}, ValueError, "last axis of x has size 4, expected 2"),
    "bias": ((X, B_, A_), {"bias": np.ones(2)}, ValueError, r"bias must have shape \(3,\)"),
    "int": ((X.astype(int), B_, A_), {}, TypeError, "x has dtype int"),
    "complex": ((X, B_ * 1j, A_), {}, TypeError, "B has the complex dtype"),
    "none": ((X, B_, None), {}, TypeError, "A must be an array .*got NoneType"),
    "b_fn": ((X, B_, A_), {"b_fn": 3}, TypeError, "b_fn must be a function, got int"),
    "a_fn": ((X, B_, A_), {"a_fn": "abs"}, TypeError, "a_fn must be a function, got str"),
    "alpha_text": ((X, B_, A_), {"alpha": "1"}, TypeError, "alpha must be a real number .*str"),
    "alpha_bool": ((X, B_, A_), {"alpha": True}, TypeError, "alpha must be a real number .*bool"),
    "alpha_array": (
        (X, B_, A_),
        {"alpha": np.ones(3)},
        TypeError,
        r"got a ndarray of shape \(3,\)",
    ),
    "alpha_none": ((X, B_, A_), {"alpha": None}, TypeError, "alpha must be a real .*NoneType"),
    "alpha_complex": ((X, B_, A_), {"alpha": 1j}, TypeError, "alpha must be a real .*complex"),
    "alpha_unit": ((X, B_, A_), {"alpha": 2 * saiunit.mV}, TypeError, "without a unit.*Quantity"),
    "alpha_nan": (
        (X, B_, A_),
        {"alpha": float("nan")},
        ValueError,
        "alpha must be finite, got nan",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_before_anything_is_bound(case, monkeypatch):
    args, options, kind, message = ERRORS[case]
    monkeypatch.setattr(_ops, "bind", lambda *a, **k: pytest.fail("bound in spite of bad input"))
    with pytest.raises(kind, match=message):
        lora_matmul(*args, **options)


def test_narrow_products_are_not_written_with_their_results_transposed() -> None:
    """XLA would contract them along their columns, which takes two to four times as long."""
    x, dy, B, A = (
        np.random.default_rng(0).normal(size=s) for s in ((64, 32), (64, 40), (32, 4), (4, 40))
    )
    rule = partial(ETP_LORA_MM.xy_to_dw, alpha=1.0, has_bias=False)
    compiled = jax.jit(rule).lower(x, dy, {"lora_b": B, "lora_a": A}).compile()
    contracted = re.findall(r"dot\(.*lhs_contracting_dims=\{(\d)\}", compiled.as_text())
    assert contracted == ["1"] * 4
