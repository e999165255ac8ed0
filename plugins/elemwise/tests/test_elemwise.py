# SPDX-License-Identifier: Apache-2.0
"""``element_wise``: values, transformations, units, errors and the rules of its primitive."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_elemwise import _ops, element_wise
from braintrace_elemwise._plugin import plugin
from braintrace_elemwise._primitives import ETP_ELEMWISE

SHAPES = [(), (1,), (4,), (3, 4), (2, 1, 4)]
STATES = 2


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def squashed(w):
    return jnp.exp(-jnp.square(w))


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-12), got, expected)


def scalar(op):
    return lambda w: jnp.sum(jnp.sin(op(w)) * w)


def stacked(w):
    return jnp.stack([w, 2 * w])


def scanned(op, w):
    def total(w):
        def body(carry, _):
            carry = op(w) * jnp.tanh(carry) + 1
            return carry, carry

        return jax.lax.scan(body, w, None, 3)[1].sum()

    return jax.value_and_grad(total)(w)


TRANSFORMS = {
    "call": lambda op, w: op(w),
    "jit": lambda op, w: jax.jit(op)(w),
    "grad": lambda op, w: jax.grad(scalar(op))(w),
    "jvp": lambda op, w: jax.jvp(op, (w,), (jnp.cos(w),)),
    "linearize": lambda op, w: jax.linearize(op, w)[1](w),
    "hessian": lambda op, w: jax.hessian(scalar(op))(w),
    "checkpoint": lambda op, w: jax.grad(jax.checkpoint(scalar(op)))(w),
    "vmap_of_the_result": lambda op, w: jax.vmap(lambda h: h * op(w))(stacked(w)),
    "vmap_grad": lambda op, w: jax.vmap(lambda h: jax.grad(lambda v: (h * op(v)).sum())(w))(
        stacked(w)
    ),
    "scan_grad": scanned,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_jax_numpy(transform, shape):
    weight = draw(*shape)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = TRANSFORMS[transform](lambda w: element_wise(w, fn=squashed), weight)
        assert_same(got, TRANSFORMS[transform](squashed, weight))


def test_binds_one_primitive_after_the_function():
    jaxpr = jax.make_jaxpr(lambda w: element_wise(w, jnp.tanh))(draw(4))
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["tanh", "etp_elemwise"]


def test_vmap_over_something_else_keeps_the_primitive():
    def scaled(h):
        return h * element_wise(draw(4), fn=jnp.exp)

    jaxpr = jax.make_jaxpr(jax.vmap(scaled))(draw(3, 4))
    assert "etp_elemwise" in {eqn.primitive.name for eqn in jaxpr.eqns}


def test_vmap_over_the_weight_is_right():
    assert_same(jax.vmap(element_wise)(draw(3, 4)), draw(3, 4))


def test_default_function_and_its_two_names():
    weight = draw(4)
    assert_same(element_wise(weight), weight)
    assert_same(element_wise(weight, squashed), squashed(weight))
    assert_same(element_wise(weight, fn=squashed), squashed(weight))
    assert_same(element_wise(weight, weight_fn=squashed), squashed(weight))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_is_kept(dtype):
    assert element_wise(jnp.ones(3, dtype), jnp.exp).dtype == dtype


def test_function_may_change_the_shape():
    assert element_wise(draw(3), lambda w: jnp.outer(w, w)).shape == (3, 3)


# --- units -----------------------------------------------------------------------------------


def test_units_are_kept():
    weight = draw(4)
    y = element_wise(weight * saiunit.ms)
    assert y.unit == saiunit.ms
    assert_same(y.mantissa, weight)


def test_the_function_sees_the_quantity():
    weight = draw(4)
    y = element_wise(weight * saiunit.ms, fn=lambda w: jnp.exp(w / saiunit.second))
    assert isinstance(y, jax.Array)
    assert_same(y, jnp.exp(weight * 1e-3))
    assert element_wise(weight, fn=lambda w: w * saiunit.mV).unit == saiunit.mV


def test_weight_fn_sees_the_numbers_and_the_unit_stays():
    weight = draw(4)

    def ours(w):
        y = element_wise(w * saiunit.ms, weight_fn=jnp.exp)
        assert y.unit == saiunit.ms
        return jnp.sin(y.mantissa).sum()

    assert_same(jax.grad(ours)(weight), jax.grad(lambda w: jnp.sin(jnp.exp(w)).sum())(weight))


def test_gradient_through_a_quantity():
    def ours(w):
        return jnp.sin(element_wise(w * saiunit.ms).to_decimal(saiunit.second)).sum()

    assert_same(jax.grad(ours)(draw(4)), jax.grad(lambda w: jnp.sin(w * 1e-3).sum())(draw(4)))


# --- errors ----------------------------------------------------------------------------------

W = np.ones(3)
ERRORS = {
    "int": ((W.astype(int),), "weight has dtype int64, expected a floating-point dtype"),
    "bool": ((W > 0,), "weight has dtype bool, expected a floating-point dtype"),
    "complex": ((W + 1j,), "weight has the complex dtype complex128.*real numbers"),
    "none": ((None,), "weight must be an array or a saiunit.Quantity, got NoneType"),
    "dict": (({"tau": W},), "weight must be an array or a saiunit.Quantity, got dict"),
    "text": (("tau",), "weight must be an array or a saiunit.Quantity, got str"),
    "fn": ((W, 3), "fn must be a function, got int"),
    "fn_int": ((W, lambda w: w > 0), r"fn\(weight\) has dtype bool, expected a floating"),
    "fn_none": ((W, lambda w: None), r"fn\(weight\) must be an array .*got NoneType"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_refused_before_anything_is_bound(case, monkeypatch):
    args, message = ERRORS[case]
    monkeypatch.setattr(_ops, "bind", lambda *a, **k: pytest.fail("bound in spite of bad input"))
    with pytest.raises(TypeError, match=message):
        element_wise(*args)


def test_both_names_of_the_function_are_refused():
    with pytest.raises(TypeError, match="either fn or weight_fn, not both"):
        element_wise(W, fn=jnp.exp, weight_fn=jnp.exp)
    with pytest.raises(TypeError, match="fn must be a function, got int"):
        element_wise(W, weight_fn=3)


# --- rules -----------------------------------------------------------------------------------


def test_specification():
    assert ETP_ELEMWISE.x_invar_index is None
    assert ETP_ELEMWISE.gradient_enabled
    assert not ETP_ELEMWISE.batched
    assert ETP_ELEMWISE.resolve_trainable_invars({}) == {"weight": 0}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_traces(shape, dtype):
    (eqn,) = jax.make_jaxpr(element_wise)(draw(*shape).astype(dtype)).eqns
    variables = (None, eqn.outvars[0], {"weight": eqn.invars[0]}, STATES)
    trace = ETP_ELEMWISE.init_drtrl(*variables)
    assert trace.keys() == {"weight"}
    for leaf in (trace["weight"], ETP_ELEMWISE.init_pp(*variables)):
        assert leaf.shape == (*shape, STATES)
        assert leaf.dtype == dtype
        assert not leaf.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_rules_equal_reverse_mode_and_a_plain_loop(shape):
    weight, dy, trace = draw(*shape), draw(*shape, seed=1), draw(*shape, seed=2)
    (expected,) = jax.vjp(ETP_ELEMWISE.impl, weight)[1](dy)
    assert_same(ETP_ELEMWISE.xy_to_dw(None, dy, {"weight": weight}), {"weight": expected})
    scaled = np.array(trace)
    for index in np.ndindex(*shape):
        scaled[index] *= dy[index]
    assert_same(ETP_ELEMWISE.yw_to_w(dy, {"weight": trace}), {"weight": scaled})


def test_plugin_declares_what_it_provides():
    info = plugin.braintrace_plugin_info()
    assert (info.family, info.distribution) == ("elemwise", "braintrace-elemwise")
    assert info.exports["ops"] == ("element_wise",)
    assert plugin.braintrace_primitives(None) == (ETP_ELEMWISE,)
