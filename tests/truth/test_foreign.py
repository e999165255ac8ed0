# SPDX-License-Identifier: Apache-2.0
"""Operations of other libraries between states: what vmap cannot map, and rules without an end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit.sparse
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests import zoo

BATCH, WIDTH = 2, 4
DENSE = np.where(np.arange(16.0).reshape(4, 4) % 3 == 0, 0.0, np.sin(np.arange(16.0)).reshape(4, 4))
DENSE = 0.4 * DENSE


class Mixed(zoo.Model):
    """A state that a given function of all of them leads to."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.w = function, zoo.weight(3, WIDTH)

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value)
        self.h.value = 0.3 * self.h.value + self.function(jnp.tanh(self.h.value)) + drive
        return self.h.value


def sparse() -> Callable[[Any], Any]:
    """A product whose primitive has no batching rule."""
    matrix = saiunit.sparse.CSR.fromdense(jnp.asarray(DENSE))
    return lambda h: (matrix.T @ h.T).T


def ragged() -> Callable[[Any], Any]:
    """A product that maps other axes than the first of its groups alone."""
    return lambda h: jax.lax.ragged_dot(h, jnp.asarray([DENSE, DENSE]), jnp.array([1, 1]))


def foreign() -> Callable[[Any], Any]:
    """A linear primitive whose rules call it through jit, as those of brainevent do."""
    made = Primitive("truth_foreign_product")
    call = jax.jit(made.bind, static_argnames="transposed")

    def run(x: Any, transposed: bool) -> Any:
        return x @ jnp.asarray(DENSE.T if transposed else DENSE)

    def jvp(xs: Any, dots: Any, transposed: bool) -> tuple[Any, Any]:
        return call(*xs, transposed=transposed), call(*dots, transposed=transposed)

    made.def_abstract_eval(lambda x, transposed: jax.core.ShapedArray(x.shape, x.dtype))
    made.def_impl(run)
    mlir.register_lowering(made, mlir.lower_fun(run, multiple_results=False))
    ad.primitive_jvps[made] = jvp
    ad.primitive_transposes[made] = lambda bar, x, transposed: [
        call(bar, transposed=not transposed)
    ]
    batching.primitive_batchers[made] = lambda xs, dims, transposed: (
        call(jnp.moveaxis(xs[0], dims[0], 0), transposed=transposed),
        0,
    )
    return lambda h: call(h, transposed=False)


def case(function: Callable[[Any], Any]) -> zoo.Case:
    module = Mixed(function)
    module.w.value = jnp.cos(jnp.arange(12.0)).reshape(3, 4)
    brainstate.nn.init_all_states(module, batch_size=BATCH)
    rng = np.random.default_rng(0)
    xs, ys = (jnp.asarray(rng.normal(size=(5, BATCH, n))) for n in (3, WIDTH))
    return zoo.Case(module, xs, ys, BATCH)


def gradients(of: zoo.Case, rule: str) -> Any:
    learner = bt.compile(of.model, rule, of.xs[0], batch_size=BATCH)
    return learner.etrace_grad(
        of.xs, of.ys, step_fn=lambda x, y: of.loss(learner(x), y), reduction="sum"
    )


@pytest.mark.filterwarnings("ignore:.*not_position_wise")
@pytest.mark.parametrize("function", [sparse, ragged, foreign])
def test_what_is_between_states_is_what_a_dense_matrix_is(function: Any) -> None:
    assert_tree_close(gradients(case(function()), "d_rtrl"), gradients(case(product), "d_rtrl"))
    reference = case(product)
    _, exact = bptt(reference.model, (reference.xs, reference.ys), reference.loss)
    assert_tree_close(gradients(case(function()), "rtrl"), exact)


def product(h: Any) -> Any:
    return h @ jnp.asarray(DENSE)


def test_what_cannot_be_mapped_over_examples_is_said_at_compile_time() -> None:
    matrix = saiunit.sparse.CSR.fromdense(jnp.asarray(DENSE))
    model = Mixed(lambda h: matrix.T @ h)
    with pytest.raises(bt.NotSupportedError, match="maps the step over examples.*'csr_matvec'"):
        bt.compile(model, "d_rtrl", jnp.ones((BATCH, 3)), batch_size=BATCH, vmap=True)


def _primitive(name: str, jvp: bool) -> Callable[[Any], Any]:
    """A doubling of another library, without a JVP or without a transpose."""
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda aval: aval)
    primitive.def_impl(lambda x: 2 * x)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))
    if jvp:
        ad.primitive_jvps[primitive] = lambda x, dots: (primitive.bind(*x), primitive.bind(*dots))
    return primitive.bind


def on_the_host(v: Any) -> Any:
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(v.shape, v.dtype), v)


@jax.custom_jvp
def with_a_rule(v: Any) -> Any:
    return on_the_host(v)


with_a_rule.defjvp(lambda v, dots: (with_a_rule(*v), jnp.cos(v[0]) * dots[0]))

WITHOUT_DERIVATIVE: dict[str, Callable[[Any], Any]] = {
    "test_without_jvp": _primitive("test_without_jvp", jvp=False),
    "test_without_transpose": _primitive("test_without_transpose", jvp=True),
    "pure_callback": on_the_host,
    "scan": lambda v: jax.lax.scan(lambda v, _: (on_the_host(v), None), v, length=2)[0],
}


@pytest.mark.parametrize("name", WITHOUT_DERIVATIVE)
def test_what_has_no_derivative_is_said_at_compile_time(name: str) -> None:
    model = Mixed(WITHOUT_DERIVATIVE[name])
    with pytest.raises(
        bt.NotSupportedError, match=rf"through '{name}' at .*test_foreign\.py:\d+.*stop_gradient"
    ):
        bt.compile(model, "d_rtrl", jnp.ones((BATCH, 3)), batch_size=BATCH)


@pytest.mark.parametrize(
    "function", [with_a_rule, lambda v: v + on_the_host(jax.lax.stop_gradient(v))]
)
def test_a_rule_of_its_own_or_no_derivative_is_enough(function: Any) -> None:
    model, xs = Mixed(function), jnp.ones((3, BATCH, 3))
    learner = bt.compile(model, bt.RTRL, xs[0], batch_size=BATCH)
    found = learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).sum(), reduction="sum")
    model.reset_state(BATCH)
    _, exact = bptt(model, (xs,), lambda y: (y**2).sum())
    assert_tree_close(found, exact)
