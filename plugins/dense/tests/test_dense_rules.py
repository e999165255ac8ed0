# SPDX-License-Identifier: Apache-2.0
"""The hand-written rules of ``etp_mv`` and ``etp_mm``, against reverse mode and plain loops."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_dense import matmul, nn
from braintrace_dense._plugin import plugin
from braintrace_dense._primitives import ETP_MM, ETP_MV

IN, OUT, BATCH, STATES = 4, 3, 5, 2
FORMS = [(spec, has_bias) for spec in (ETP_MV, ETP_MM) for has_bias in (False, True)]
form = pytest.mark.parametrize(("spec", "has_bias"), FORMS, ids=[f"{s.name}-{b}" for s, b in FORMS])
pytestmark = pytest.mark.usefixtures("strict_jax")


def lead(spec):
    return (BATCH,) if spec.batched else ()


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def operands(spec, has_bias):
    weights = {"weight": draw(IN, OUT)} | ({"bias": draw(OUT)} if has_bias else {})
    return draw(*lead(spec), IN), weights


def equation(spec, has_bias):
    x, weights = operands(spec, has_bias)
    (eqn,) = jax.make_jaxpr(matmul)(x, *weights.values()).eqns
    return eqn


def zero_trace(spec, has_bias):
    eqn = equation(spec, has_bias)
    positions = spec.resolve_trainable_invars(eqn.params)
    weight_vars = {key: eqn.invars[i] for key, i in positions.items()}
    return spec.init_drtrl(eqn.invars[0], eqn.outvars[0], weight_vars, STATES)


@form
def test_trainable_operands(spec, has_bias):
    expected = {"weight": 1, "bias": 2} if has_bias else {"weight": 1}
    assert spec.resolve_trainable_invars({"has_bias": has_bias}) == expected


def test_specification():
    assert ETP_MV.batched_counterpart == ETP_MM.name == "etp_mm"
    assert (ETP_MV.batched, ETP_MM.batched) == (False, True)
    assert not ETP_MV.gradient_enabled
    assert not ETP_MM.gradient_enabled


@form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_traces(spec, has_bias, dtype):
    x, weights = operands(spec, has_bias)
    args = [v.astype(dtype) for v in (x, *weights.values())]
    (eqn,) = jax.make_jaxpr(matmul)(*args).eqns
    weight_vars = dict(zip(weights, eqn.invars[1:], strict=True))
    trace = spec.init_drtrl(eqn.invars[0], eqn.outvars[0], weight_vars, STATES)
    shapes = {"weight": (IN, OUT), "bias": (OUT,)}
    assert {k: v.shape for k, v in trace.items()} == {
        k: (*lead(spec), *shapes[k], STATES) for k in weights
    }
    factor = spec.init_pp(eqn.invars[0], eqn.outvars[0], weight_vars, STATES)
    assert factor.shape == (*lead(spec), OUT, STATES)
    for leaf in (*trace.values(), factor):
        assert leaf.dtype == dtype
        assert not leaf.any()


@form
def test_xy_to_dw_is_the_vjp_of_the_implementation(spec, has_bias):
    x, weights = operands(spec, has_bias)
    dy = draw(*lead(spec), OUT, seed=1)
    got = spec.xy_to_dw(x, dy, weights, has_bias=has_bias)
    _, pull = jax.vjp(lambda w: spec.impl(x, *(w[k] for k in weights), has_bias=has_bias), weights)
    (expected,) = pull(dy)
    assert got.keys() == expected.keys()
    for key in got:
        np.testing.assert_allclose(got[key], expected[key], 1e-12, 1e-12)
        assert got[key].dtype == weights[key].dtype


@form
def test_yw_to_w_equals_a_plain_loop(spec, has_bias):
    shapes = {k: v.shape[:-1] for k, v in zero_trace(spec, has_bias).items()}
    trace = {key: draw(*shape, seed=2) for key, shape in shapes.items()}
    dy = draw(*lead(spec), OUT, seed=1)
    got = spec.yw_to_w(dy, trace, has_bias=has_bias)
    assert got.keys() == trace.keys()
    for key, leaf in trace.items():
        expected = np.array(leaf)
        for index in itertools.product(*map(range, leaf.shape)):
            example = index[:1] if spec.batched else ()
            expected[index] *= dy[(*example, index[-1])]
        np.testing.assert_allclose(got[key], expected, 1e-12)


@form
def test_yw_to_w_maps_over_the_state_axis(spec, has_bias):
    trace = {k: draw(*v.shape, seed=3) for k, v in zero_trace(spec, has_bias).items()}
    dy = draw(*lead(spec), OUT, STATES, seed=1)
    got = jax.vmap(lambda d, t: spec.yw_to_w(d, t, has_bias=has_bias), -1, -1)(dy, trace)
    for s in range(STATES):
        one = spec.yw_to_w(dy[..., s], {k: v[..., s] for k, v in trace.items()}, has_bias=has_bias)
        for key in trace:
            np.testing.assert_allclose(got[key][..., s], one[key], 1e-12)


@form
def test_a_solved_one_step_trace_is_xy_to_dw(spec, has_bias):
    """Scaling ``x`` by ``f`` and then by a signal, and summing, equals ``xy_to_dw``."""
    x, weights = operands(spec, has_bias)
    f, signal = draw(*lead(spec), OUT, seed=4), draw(*lead(spec), OUT, seed=5)
    ones = {"weight": jnp.broadcast_to(x[..., None], (*x.shape, OUT)), "bias": jnp.ones_like(f)}
    trace = spec.yw_to_w(f, {k: ones[k] for k in weights}, has_bias=has_bias)
    solved = spec.yw_to_w(signal, trace, has_bias=has_bias)
    expected = spec.xy_to_dw(x, signal * f, weights, has_bias=has_bias)
    for key in weights:
        got = solved[key].sum(0) if spec.batched else solved[key]
        np.testing.assert_allclose(got, expected[key], 1e-12, 1e-12)


def test_plugin_declares_what_it_provides():
    info = plugin.braintrace_plugin_info()
    assert (info.family, info.distribution) == ("dense", "braintrace-dense")
    assert info.exports["ops"] == ("matmul",)
    assert set(info.exports["nn"]) == set(nn.__all__)
    assert plugin.braintrace_primitives(None) == (ETP_MV, ETP_MM)
