# SPDX-License-Identifier: Apache-2.0
"""Values, units, dtypes and errors of ``einsum``, ``grouped_matmul`` and ``GroupedLinear``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace
from braintrace_einsum import einsum, grouped_matmul
from braintrace_einsum._equation import parse
from braintrace_einsum.nn import GroupedLinear

SIZES = {"a": 2, "b": 3, "c": 4, "d": 2, "Q": 5}
EQUATIONS = [
    "bc,cd->bd",
    "bc,cd",
    " bac , acd -> bda ",
    "abc,cd->dab",
    "bQa,bQa->b",
    "abc,abc->",
    "bb,bc->bc",
    "ab,cc->ab",
    "abd,c->ad",
    "b,d->bd",
    "...c,cd->...d",
    "a...,ad->d...",
    "...,d->...d",
]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def operands(equation, dots=(3, 2)):
    terms = equation.replace(" ", "").split("->")[0].split(",")

    def shape(term):
        head, _, tail = term.partition("...")
        middle = dots if "..." in term else ()
        return (*(SIZES[k] for k in head), *middle, *(SIZES[k] for k in tail))

    return [draw(*shape(term), seed=k) for k, term in enumerate(terms)]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_values_and_gradients_are_those_of_numpy(equation):
    x, w = operands(equation)
    y = einsum(equation, x, w)
    np.testing.assert_allclose(y, np.einsum(equation, x, w), rtol=1e-12)
    weight = draw(*y.shape, seed=9)
    found, expected = (
        jax.grad(lambda x, w: (op(equation, x, w) * weight).sum(), (0, 1))(x, w)  # noqa: B023
        for op in (einsum, jnp.einsum)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("equation", "axes", "words"),
    [
        ("bc", ((3, 4), (4, 2)), "expected two operands"),
        ("bc,cd,d->b", ((3, 4), (4, 2)), "expected two operands"),
        ("bc,cd->bd", ((3, 4), (5, 2)), "letter 'c' has the sizes 4 and 5"),
        ("bc,cd->bd", ((3,), (4, 2)), "x has axes (3,) and letters 'bc'"),
        ("bc,cd->bd", ((3, 4), (4,)), "weight has axes (4,) and letters 'cd'"),
        ("bc,cd->be", ((3, 4), (4, 2)), "no operand has 'e'"),
        ("bc,cd->bb", ((3, 4), (4, 2)), "a letter twice"),
        ("bc,...d->bd", ((3, 4), (4, 2)), "in place of an ellipsis"),
        ("...c,cd->d", ((3, 4), (4, 2)), "once in x and once in the result"),
        ("b1,1d->bd", ((3, 4), (4, 2)), "a to z or A to Z, found '1'"),
        ("..c,cd->..d", ((3, 4), (4, 2)), "once in x and once in the result"),
    ],
)
def test_equations_that_do_not_fit_say_why(equation, axes, words):
    with pytest.raises(ValueError, match="the equation is") as raised:
        einsum(equation, *map(jnp.ones, axes))
    assert words in str(raised.value) and str(axes[0]) in str(raised.value)


def test_operands_of_other_types_are_refused():
    with pytest.raises(TypeError, match="equation must be a string"):
        einsum(None, jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="weight"):
        einsum("b,b->b", jnp.ones(2), jnp.ones(2, int))
    with pytest.raises(TypeError, match="x"):
        grouped_matmul(jnp.ones((2, 3), complex), jnp.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="more than 26 letters"):
        text = "".join(map(chr, [*range(97, 123), 65]))
        parse(f"{text},{text}->{text}", (1,) * 27, (1,) * 27)


def test_units_multiply_and_a_bias_must_fit():
    x, w, b = draw(2, 3), draw(2, 3, 4), draw(2, 4)
    y = grouped_matmul(x * u.mV, w * u.nS, b * 1e-3 * u.pA, bias_fn=jnp.negative)
    expected = (jnp.einsum("gi,gio->go", x, w) - 1e-3 * b) * u.pA
    assert u.math.allclose(y, expected)
    assert u.math.allclose(einsum("gi,gio->go", x * u.mV, w), jnp.einsum("gi,gio->go", x, w) * u.mV)
    with pytest.raises(TypeError, match="bias"):
        grouped_matmul(x * u.mV, w, b)


def test_dtypes_are_promoted():
    y = einsum("bi,io->bo", jnp.ones((2, 3), jnp.float32), jnp.ones((3, 1), jnp.bfloat16))
    assert y.dtype == jnp.float32


@pytest.mark.parametrize(
    ("x", "w", "words"),
    [
        ((3,), (2, 3, 4), "GroupedLinear"),
        ((2, 3), (3, 4), r"\[groups, in, out\]"),
        ((5, 2, 3), (3, 3, 4), r"sizes \(2, 3\)"),
    ],
)
def test_groups_that_do_not_fit_say_why(x, w, words):
    with pytest.raises(ValueError, match=words):
        grouped_matmul(jnp.ones(x), jnp.ones(w))


def test_vmap_keeps_the_operation():
    x, w = draw(5, 2, 3), draw(2, 3, 4)
    program = jax.make_jaxpr(jax.vmap(grouped_matmul, in_axes=(0, None)))(x, w)
    assert "etp_einsum_batched" in str(program)
    np.testing.assert_allclose(
        jax.vmap(grouped_matmul, in_axes=(0, None))(x, w), grouped_matmul(x, w), rtol=1e-12
    )


def test_the_layer_folds_leading_axes_and_draws_each_group():
    layer = GroupedLinear(2, 50, 40, b_init=lambda shape: jnp.ones(shape), key=0)
    weight = layer.weight.value["weight"]
    assert weight.shape == (2, 50, 40) and not np.allclose(weight[0], weight[1])
    assert abs(float(weight.std()) / (2 / 50) ** 0.5 - 1) < 0.1  # the fan of a group
    x = draw(5, 3, 2, 50)
    np.testing.assert_allclose(
        layer(x), jnp.einsum("...gi,gio->...go", x, weight) + 1, rtol=1e-5, atol=1e-5
    )
    assert layer(x[0, 0]).shape == (2, 40) and layer.out_size == (2, 40)
    assert "bias" not in GroupedLinear(1, 2, 3, b_init=None).weight.value
    given = GroupedLinear(2, 1, 3, w_init=jnp.arange(6.0).reshape(2, 1, 3) * u.mS, b_init=None)
    assert u.get_unit(given(jnp.ones((2, 1)))) == u.mS
    with pytest.raises(ValueError, match="w_init"):
        GroupedLinear(2, 1, 3, w_init=jnp.ones((3, 1)))
    assert braintrace.nn.GroupedLinear is GroupedLinear
