# SPDX-License-Identifier: Apache-2.0
"""Running equations, calls inlined and outputs made distinct; operations at any depth; parts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import check_jaxpr

import braintrace as bt
from braintrace.base import versions
from braintrace.base.versions import jaxp
from braintrace.jaxprs.run import (
    MOST_STEPS,
    WRITTEN_OUT,
    between,
    etp_equations,
    first_nested_operation,
    flatten,
    holds,
    inlined,
    nested,
    read,
    run_equations,
    run_inlined,
    scan,
    with_replacements,
)

scale_p = bt.register_primitive("unit_run_scale", lambda x, w: x * w)


def called(x: Any, w: Any) -> Any:
    return jax.jit(jax.checkpoint(lambda x: jnp.sin(scale_p.bind(x, w))))(x), x


def test_equations_write_to_the_environment() -> None:
    jaxpr = jax.make_jaxpr(lambda x: jnp.sin(x) * 2.0)(1.0)
    env = {jaxpr.invars[0]: 0.5}
    run_equations(jaxpr.eqns, env)
    assert read(env, jaxpr.outvars[0]) == 2.0 * jnp.sin(0.5)


def test_calls_are_run_equation_by_equation() -> None:
    jaxpr, met = jax.make_jaxpr(called)(1.0, 2.0), []

    def run(x: Any, w: Any) -> Any:
        return run_inlined(inlined(jaxpr, met.append), [x, w])

    program = jax.make_jaxpr(run)(1.0, 2.0)
    assert [eqn.primitive.name for eqn in program.eqns] == ["unit_run_scale", "sin"]
    assert [eqn.primitive for eqn in met] == [scale_p]
    assert run(1.0, 2.0) == [jnp.sin(2.0), 1.0]


def test_inputs_are_permuted_and_outputs_distinct() -> None:
    jaxpr = jax.make_jaxpr(lambda a, b: (a, b * 2.0, b * 2.0 + a))(1.0, 2.0)
    flat = flatten(jaxpr, [1, 0], [1, 0, 1], own=[0, 1, 2])
    check_jaxpr(getattr(flat, "jaxpr", flat))
    assert versions.jaxpr_as_fun(flat)(2.0, 1.0) == [4.0, 1.0, 4.0]
    first, copied, again = flat.outvars
    assert len({first, copied, again, *flat.invars}) == 5


def test_a_call_that_is_inlined_twice_has_variables_of_its_own() -> None:
    table = jnp.arange(3.0)

    @jax.jit
    def drawn(x: Any) -> Any:
        ref = jax.new_ref(x * table)
        ref[0] = 2.0 * ref[1]
        return jax.freeze(ref), 1.0

    jaxpr = jax.make_jaxpr(lambda x: (*drawn(x), *drawn(drawn(x)[0])))(jnp.ones(3))
    flat = inlined(jaxpr)
    check_jaxpr(getattr(flat, "jaxpr", flat))
    made = [var for eqn in flat.eqns for var in eqn.outvars]
    assert len(made) == len({*made}) and not any(map(versions.inner_jaxprs, flat.eqns))
    found = versions.jaxpr_as_fun(flat)(jnp.ones(3))
    assert [np.asarray(v).tolist() for v in found] == [[2, 1, 2], 1, [2, 1, 4], 1]


nested_p = bt.register_primitive("unit_nested_scale", lambda x, w: x * w)


def looped(x: Any, w: Any) -> Any:
    def body(carry: Any, _: Any) -> Any:
        return jax.lax.cond(carry > 0, lambda c: nested_p.bind(c, w), jnp.sin, carry), None

    return nested_p.bind(jax.lax.scan(body, x, None, length=3)[0], w)


def test_operations_are_found_at_any_depth() -> None:
    scan, last = jax.make_jaxpr(looped)(1.0, 2.0).eqns
    assert etp_equations([scan, last]) == [1]
    assert first_nested_operation(last) is None
    found = first_nested_operation(scan)
    assert found is not None and found.primitive is nested_p
    assert holds(scan, nested_p) and holds(scan, jaxp.sin_p) and holds(last, nested_p)
    assert not holds(scan, jaxp.cos_p) and not holds(last, jaxp.sin_p)
    assert {"gt", "cond", "sin", "unit_nested_scale"} <= {e.primitive.name for e in nested(scan)}


# --- parts of a program -------------------------------------------------------------------------


def step(x: Any, h: Any, w: Any) -> Any:
    drive = jnp.sin(x) * w
    return jnp.tanh(h * w + drive), drive


JAXPR = jax.make_jaxpr(step)(1.0, 2.0, 3.0)


def test_what_the_way_reads_is_free() -> None:
    _, h, w = JAXPR.invars
    part = between(JAXPR.eqns, [h], JAXPR.outvars[:1])
    assert part.ins == (h,) and set(part.free) == {w, JAXPR.outvars[1]}
    assert [eqn.primitive.name for eqn in part.eqns] == ["mul", "add", "tanh"]
    values = {w: 3.0, JAXPR.outvars[1]: 0.5}
    assert part.run(*(values[v] for v in part.free), 2.0) == [jnp.tanh(6.5)]
    program = part.jaxpr()
    check_jaxpr(getattr(program, "jaxpr", program))
    assert len(program.invars) == 3 and not program.consts


def test_a_way_ends_at_what_is_held() -> None:
    x, _, _ = JAXPR.invars
    new, drive = JAXPR.outvars
    part = between(JAXPR.eqns, [x], [new], held=[drive])
    assert part.eqns == () and part.free == (new,)


def test_a_way_may_be_refused_an_operand() -> None:
    _, h, w = JAXPR.invars
    part = between(
        JAXPR.eqns, [h, w], JAXPR.outvars[:1], follows=lambda i, eqn, k: eqn.invars[k] is not w
    )
    assert [eqn.primitive.name for eqn in part.eqns] == ["mul", "add", "tanh"]


def test_a_derivative_can_be_cut() -> None:
    _, h, _ = JAXPR.invars
    part = between(JAXPR.eqns, [h], JAXPR.outvars[:1])

    def slope(cut: Any) -> Any:
        return jax.grad(lambda h: part.run(0.1, 0.2, h, cut=cut)[0])(0.3)

    assert slope(lambda eqn: eqn.primitive.name == "mul") == 0.0
    assert slope(lambda eqn: False) != pytest.approx(0.0)


def test_what_carries_several_operands_carries_them_one_by_one() -> None:
    def fun(a: Any, b: Any) -> Any:
        return jax.device_put(jax.lax.optimization_barrier((a, 2 * b)), jax.devices()[0])

    flat = flatten(jax.make_jaxpr(fun)(1.0, 2.0), [0, 1], [0, 1], [])
    names = [eqn.primitive.name for eqn in flat.eqns]
    assert names == ["mul", *["optimization_barrier"] * 2, *["device_put"] * 2]
    assert all(len(eqn.invars) == len(eqn.outvars) == 1 for eqn in flat.eqns[1:])
    assert [float(v) for v in versions.jaxpr_as_fun(flat)(1.0, 2.0)] == [1.0, 4.0]


def test_a_replacement_may_read_other_values() -> None:
    jaxpr = versions.make_jaxpr(lambda a, b: [jax.lax.sin(a), jax.lax.cos(b)], 1.0, 2.0)
    a, b = jaxpr.invars
    found = with_replacements(jaxpr, {1: lambda x, y: [10 * x + y]}, {1: [a, b]})
    assert versions.jaxpr_as_fun(found)(1.0, 2.0)[1] == 12.0


def test_off_a_cpu_small_steps_of_a_loop_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(carry: Any, row: Any) -> tuple[Any, Any]:
        return 0.9 * carry + row["x"], jnp.sin(carry)

    def large(carry: Any, row: Any) -> tuple[Any, Any]:
        for _ in range(WRITTEN_OUT):
            carry = jnp.sin(carry)
        return carry, None

    def turns(step: Any, **how: Any) -> int:
        (eqn,) = jax.make_jaxpr(lambda *given: scan(step, *given, **how))(start, rows).eqns
        return int(eqn.params["unroll"])

    start, rows = jnp.ones(3), {"x": jnp.arange(37 * 3.0).reshape(37, 3), "none": None}
    wanted = jax.lax.scan(small, start, rows, reverse=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert turns(small) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert turns(small, reverse=True) == MOST_STEPS and turns(large) == 1
    found = scan(
        small, start, rows, reverse=True
    )  # 37 steps are no multiple of what is written out
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
    counted, _ = scan(lambda n, _: (n + 1, None), 0, [], length=5)
    assert counted == 5
