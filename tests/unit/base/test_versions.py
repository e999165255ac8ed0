# SPDX-License-Identifier: Apache-2.0
"""What is taken from the installed JAX."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.base import versions
from braintrace.base.versions import Primitive

aval = jax.ShapeDtypeStruct


def equation(fun: Any, *avals: Any, name: str) -> Any:
    eqns = versions.make_jaxpr(fun, *avals).eqns
    return next(eqn for eqn in eqns if eqn.primitive.name == name)


def named_here(x: Any) -> Any:
    return jnp.sin(x)


def test_primitives_that_rearrange_are_found_by_name() -> None:
    found = versions.rearranging()
    assert found["split"] is jax.lax.split_p
    assert all(primitive.name == name for name, primitive in found.items()) and len(found) > 1


def test_literals_are_no_variables() -> None:
    (eqn,) = versions.make_jaxpr(lambda x: x * 2.0, aval((), "float64")).eqns
    assert [versions.is_var(atom) for atom in eqn.invars] == [True, False]


def test_the_counts_of_a_scan() -> None:
    w = jnp.arange(3.0)

    def fun(x: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda c, v: ((c[0] * w.sum(), c[1] + v), v), (x, x), xs)

    eqn = equation(fun, aval((), "float64"), aval((5,), "float64"), name="scan")
    consts, carried = versions.scan_counts(eqn)
    assert carried == 2 and len(eqn.invars) == consts + carried + 1
    body = versions.sub_jaxpr(eqn)
    assert len(body.invars) == len(eqn.invars) and hasattr(body, "consts")


def test_inner_programs_of_a_cond_are_its_branches() -> None:
    def fun(x: Any) -> Any:
        return jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)

    branches = versions.inner_jaxprs(equation(fun, aval((), "float64"), name="cond"))
    assert {branch.eqns[0].primitive.name for branch in branches} == {"sin", "cos"}
    with pytest.raises(ValueError, match="too many values"):
        versions.sub_jaxpr(equation(fun, aval((), "float64"), name="cond"))


def test_values_that_are_known_before_the_first_equation() -> None:
    table = jnp.arange(3.0)
    jaxpr = versions.make_jaxpr(lambda x: x + table, aval((3,), "float64"))
    env = versions.start_env(jaxpr, [jnp.ones(3)])
    assert [v.tolist() for v in env.values()] == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]
    with pytest.raises(ValueError, match="zip"):
        versions.start_env(jaxpr, [])


def test_an_equation_runs_at_its_own_place_in_the_source() -> None:
    eqn = equation(named_here, aval((), "float64"), name="sin")
    assert versions.bind_equation(eqn, [jnp.zeros(())]) == [0.0]
    assert "test_versions.py" in versions.source_of(eqn)

    def elsewhere(own: bool) -> Any:
        run = lambda x: versions.bind_equation(eqn, [x], own)[0]  # noqa: E731
        return versions.source_of(equation(run, aval((), "float64"), name="sin"))

    assert elsewhere(True) == versions.source_of(eqn) != elsewhere(False)


def test_a_rule_that_is_kept_gives_the_tangents_of_the_results() -> None:
    traced = []

    @jax.custom_jvp
    def pair(x: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x * n, jnp.floor(x)

    @pair.defjvp
    def rule(primals: Any, dots: Any) -> Any:
        traced.append(primals)
        (x, n), (dot, _) = primals, dots
        return pair(x, n), (dot[::-1] * n, jnp.zeros_like(x))

    (eqn,) = jax.make_jaxpr(pair)(jnp.ones(3), 2).eqns
    for _ in range(2):
        kept = versions.kept_rule(eqn)
        assert kept is not None
        program, dots, results = kept
        assert [v.aval.shape for v in dots] == [(3,), ()] and len(results) == 2
        primals = (jnp.arange(3.0), 2, jnp.arange(3.0), np.zeros((), jax.dtypes.float0))
        found = jax.core.eval_jaxpr(program, [], *primals)
        np.testing.assert_allclose(found[program.outvars.index(results[0])], [4.0, 2.0, 0.0])
    assert len(traced) == 1


def test_a_cell_of_a_notebook_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    (eqn,) = jax.make_jaxpr(lambda x: x + 1)(1.0).eqns
    before = versions.source_of(eqn)
    cells = {__file__: ("Cell", "In[3]")}
    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=cells.get))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert versions.source_of(eqn) == before.replace(__file__, "In[3]") != before
    cells.clear()
    assert versions.source_of(eqn) == before


def test_the_function_that_an_equation_was_written_in() -> None:
    eqn = equation(named_here, aval((), "float64"), name="sin")
    assert versions.written_in(eqn, "named_here")
    assert not versions.written_in(eqn, "here")


def test_floats_carry_derivatives() -> None:
    dtypes = ("float32", "bfloat16", "complex64", "int32", "bool")
    assert [versions.is_float(aval((), d)) for d in dtypes] == [True, True, True, False, False]


def test_wide_types_can_be_made_where_they_are_off() -> None:
    with jax.enable_x64(False):
        with versions.types_of([aval((), "float64")]):
            assert jnp.zeros((), "float64").dtype == "float64"
        with versions.types_of([aval((), "float32")]):
            assert not jax.config.jax_enable_x64


def test_a_function_of_some_operands() -> None:
    of_two = versions.partial_at(lambda a, b, c: (a, b, c), [1, 2, 3], [2, 0])
    assert of_two("c", "a") == ("a", 2, "c")


def installed(impl: Any, name: str) -> Primitive:
    primitive = Primitive(name)
    versions.install_rules(primitive, impl, lambda args, dims, **p: (impl(*args, **p), dims[0]))
    return primitive


def test_rules_of_a_primitive_follow_from_what_it_computes() -> None:
    p = installed(lambda x, w, *, scale: scale * x * w, "unit_product")
    x, w = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])

    def run(x: Any, w: Any) -> Any:
        return p.bind(x, w, scale=2.0)

    assert run(x, w).tolist() == jax.jit(run)(x, w).tolist() == [6.0, 16.0]
    assert jax.jvp(run, (x, w), (w, x))[1].tolist() == [20.0, 40.0]  # 2 (w w + x x)
    assert jax.grad(lambda w: run(x, w).sum())(w).tolist() == [2.0, 4.0]
    assert jax.vmap(run)(x[:, None], w[:, None]).tolist() == [[6.0], [16.0]]
    assert jax.eval_shape(run, x, w).shape == (2,)


def test_an_operation_without_moving_operands_has_no_tangent() -> None:
    p = installed(lambda x: x.sum(), "unit_sum")
    y, moved = jax.jvp(lambda x: p.bind(jax.lax.stop_gradient(x)), (jnp.ones(2),), (jnp.ones(2),))
    assert (float(y), float(moved)) == (2.0, 0.0)


def test_parameters_that_cannot_be_hashed_are_run_as_they_are() -> None:
    p = installed(lambda x, *, table: x * table["a"], "unit_table")
    assert p.bind(jnp.ones(()), table={"a": 3.0}) == 3.0


def test_an_operation_returns_one_array() -> None:
    p = installed(lambda x: (x, x), "unit_pair")
    with pytest.raises(TypeError, match="impl of 'unit_pair' must return one array, got tuple"):
        p.bind(jnp.ones(1))
    with pytest.raises(TypeError, match="must return one array"):
        jax.eval_shape(p.bind, jnp.ones(1))


def test_warnings_are_attributed_to_the_user() -> None:
    with pytest.warns(DeprecationWarning, match="old") as caught:
        versions.warn("old", DeprecationWarning)
    assert caught[0].filename == __file__


def test_the_bits_of_keys_and_seeds_are_the_same() -> None:
    for seed in (3, np.int32(3), jax.random.key(3), jax.random.PRNGKey(3)):
        assert versions.random_bits_of(seed).tolist() == [0, 3]


def test_what_is_traced() -> None:
    seen: list[Any] = []
    jax.make_jaxpr(lambda x: seen.append(x) or x)(1.0)
    assert versions.is_traced(seen[0]) and not versions.is_traced(jnp.ones(1))

    def nested(x: Any) -> Any:
        jax.make_jaxpr(lambda y: seen.append(versions.from_another_trace(y, x)) or y)(1.0)
        return x

    jax.make_jaxpr(nested)(1.0)
    assert seen[1] is True and not versions.from_another_trace(1.0, seen[0])
    assert not versions.from_another_trace(seen[0], seen[0])


ONE = ("examples",)  # an axis of one device already has a type


def test_where_a_result_lies_is_part_of_its_type() -> None:
    p = installed(lambda x, w: x @ w, "unit_placed")
    mesh = jax.make_mesh((1,), ONE, axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((2, 3)), jax.NamedSharding(mesh, jax.P(*ONE)))
        w = jnp.ones((3, 4))
        y = jax.eval_shape(p.bind, x, w)
        assert jax.typeof(p.bind(x, w)).sharding.spec == y.sharding.spec == jax.P(*ONE, None)
        grad = jax.jit(jax.grad(lambda w, x: p.bind(x, w).sum()))(w, x)
        assert jax.typeof(grad) == jax.typeof(w)


def test_what_varies_under_shard_map_is_part_of_its_type() -> None:
    p = installed(lambda x, w: x @ w, "unit_varying")
    mesh, axes = jax.make_mesh((1,), ONE, axis_types=(jax.sharding.AxisType.Auto,)), jax.P(*ONE)
    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))

    def run(f: Any, out: Any) -> Any:
        return jax.shard_map(f, mesh=mesh, in_specs=(axes, jax.P()), out_specs=out)(x, w)

    with pytest.raises(ValueError, match="out_specs"):  # y differs from device to device
        run(p.bind, jax.P())
    assert run(p.bind, axes).shape == (2, 4)
    own = jax.grad(lambda x, w: p.bind(x, w).sum(), 1)
    assert run(own, jax.P()).tolist() == [[2.0] * 4] * 3  # the sum over devices is JAX's
    assert jax.grad(lambda w: run(lambda x, _: p.bind(x, w), axes).sum())(w).shape == w.shape


def test_whether_there_are_several_devices(monkeypatch: Any) -> None:
    for count in (1, 2):
        monkeypatch.setattr(jax, "device_count", lambda count=count: count)
        assert versions.several_devices() == (count > 1)
